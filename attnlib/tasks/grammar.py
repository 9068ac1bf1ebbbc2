"""A text corpus from a small grammar of our own, in which every dependency is known.

A document names its topic in the first sentence and must name it again in the last one; each verb
agrees with the head of its subject, whatever nouns stand between; every bracket is closed by its
own kind, innermost first. An example:

    this is about the foxes . the key near the doors is old ( the cat is red ) . so ends the
    tale of the foxes . end

The grammar writes from left to right and every choice shows in the word that it chooses, so the
chance of each word, given the words before, is known exactly; with it the best possible loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.choices import check_choice
from attnlib.tasks.task import Task, check_sizes, generator_from

SINGULAR = ("fox", "key", "door", "cat", "lamp", "boat", "bird", "stone")
PLURAL = ("foxes", "keys", "doors", "cats", "lamps", "boats", "birds", "stones")
NOUNS = SINGULAR + PLURAL
PREPOSITIONS = ("near", "behind", "above", "below")
ADJECTIVES = ("old", "red", "small", "warm", "lost", "quiet")
VERBS = ("is", "are")
OPENING, CLOSING = ("(", "["), (")", "]")
FRAME = ("this", "about", "the", "so", "ends", "tale", "of", ".", "end")
WORDS = (*NOUNS, *PREPOSITIONS, *ADJECTIVES, *VERBS, *OPENING, *CLOSING, *FRAME)
"""The vocabulary: the token of a word is its place in this tuple."""

TOKEN = {word: token for token, word in enumerate(WORDS)}


class Dependency(NamedTuple):
    """A word that an earlier word decides: `right`, not one of `wrong`."""

    kind: str  # "agreement", "bracket" or "topic"
    position: int  # where the word stands
    source: int  # where the word stands that decides it
    right: str
    wrong: tuple[str, ...]

    @property
    def distance(self) -> int:
        """From how far back it is decided."""
        return self.position - self.source

    @property
    def chance(self) -> float:
        """Chance of naming the right one of the candidates."""
        return 1 / (1 + len(self.wrong))


class Document(NamedTuple):
    """The words, the chance of each given those before it, and what decides what."""

    words: tuple[str, ...]
    probabilities: tuple[float, ...]
    dependencies: tuple[Dependency, ...]


class GrammarBatch(NamedTuple):
    """Windows of text with the next words as targets, and the grammar's chance of each target."""

    tokens: Int[Tensor, "batch N"]
    targets: Int[Tensor, "batch N"]
    probabilities: Float[Tensor, "batch N"]


@dataclass(frozen=True)
class Grammar(Task):
    """Documents of random length, one after the other, cut into windows of `length` tokens.

    Each window begins with a new document. `sentences` is the largest number of sentences between
    the first and the last, `nesting` the depth of brackets, `attached` the largest number of
    phrases between a subject and its verb.
    """

    length: int = 64
    sentences: int = 4
    nesting: int = 2
    attached: int = 2

    def __post_init__(self):
        check_sizes(length=self.length, sentences=self.sentences)
        for name, number in (("nesting", self.nesting), ("attached", self.attached)):
            if number < 0:
                raise ValueError(f"{name} must be at least 0, got {number}")

    @property
    def vocabulary(self) -> int:
        """How many words there are."""
        return len(WORDS)

    @property
    def chance(self) -> float:
        """Accuracy of guessing any word."""
        return 1 / len(WORDS)

    def document(self, seed: int | torch.Generator) -> Document:
        """One document."""
        return self._document(_choices(generator_from(seed)))

    def batch(self, size: int, seed: int | torch.Generator) -> GrammarBatch:
        """Windows of fresh text."""
        choices = _choices(generator_from(seed))
        tokens, chances = [], []
        for _ in range(size):
            words, probabilities = [], []
            while len(words) <= self.length:
                document = self._document(choices)
                words += document.words
                probabilities += document.probabilities
            tokens.append([TOKEN[word] for word in words[: self.length + 1]])
            chances.append(probabilities[1 : self.length + 1])
        whole = torch.tensor(tokens)
        return GrammarBatch(whole[:, :-1], whole[:, 1:], torch.tensor(chances))

    def _document(self, choices: Iterator[float]) -> Document:
        writer = _Writer(choices)
        writer.say("this is about the")
        topic = writer.choose(NOUNS)
        writer.say(". the")
        for written in range(1, self.sentences + 1):
            self._clause(writer, ".")
            goes_on = ("the", "the", "the", "so") if written < self.sentences else ("so",)
            if writer.words[writer.choose(goes_on)] == "so":
                break
        writer.say("ends the tale of the")
        noun = writer.words[topic]
        place = writer.choose((noun,))
        writer.note("topic", place, topic, tuple(other for other in NOUNS if other != noun))
        writer.say(". end")
        return Document(
            tuple(writer.words), tuple(writer.probabilities), tuple(writer.dependencies)
        )

    def _clause(self, writer: "_Writer", ending: str, depth: int = 0) -> int:
        """What follows "the", up to the word that ends the clause; gives that word's place."""
        head = writer.choose(NOUNS)
        right, wrong = VERBS if writer.words[head] in SINGULAR else VERBS[::-1]
        verbs = (right,) * len(PREPOSITIONS)  # as likely as all prepositions together
        place = writer.choose(verbs + PREPOSITIONS if self.attached else verbs)
        for phrase in range(1, self.attached + 1):
            if writer.words[place] == right:
                break
            writer.say("the")
            writer.choose(NOUNS)
            place = writer.choose(verbs + PREPOSITIONS if phrase < self.attached else verbs)
        writer.note("agreement", place, head, (wrong,))

        writer.choose(ADJECTIVES)
        place = writer.choose((ending, ending, *OPENING) if depth < self.nesting else (ending,))
        if writer.words[place] == ending:
            return place
        kind = OPENING.index(writer.words[place])
        writer.say("the")
        closed = self._clause(writer, CLOSING[kind], depth + 1)
        writer.note("bracket", closed, place, (CLOSING[1 - kind],))
        return writer.choose((ending,))


class _Writer:
    """Writes words, and keeps the chance of each and what decides it."""

    def __init__(self, choices: Iterator[float]):
        self.choices = choices
        self.words: list[str] = []
        self.probabilities: list[float] = []
        self.dependencies: list[Dependency] = []

    def choose(self, options: Sequence[str]) -> int:
        """Write one of the options, an option given twice being twice as likely; its place."""
        word = options[int(next(self.choices) * len(options))]
        self.words.append(word)
        self.probabilities.append(options.count(word) / len(options))
        return len(self.words) - 1

    def say(self, words: str) -> None:
        """Write words that could not be others."""
        for word in words.split():
            self.choose((word,))

    def note(self, kind: str, position: int, source: int, wrong: tuple[str, ...]) -> None:
        """Note that the word at `position` was decided by the one at `source`."""
        self.dependencies.append(Dependency(kind, position, source, self.words[position], wrong))


def _choices(generator: torch.Generator) -> Iterator[float]:
    """Random numbers from [0, 1) without end, drawn a thousand at a time."""
    while True:
        yield from torch.rand(1000, generator=generator, dtype=torch.float64).tolist()


def best_loss(batch: GrammarBatch) -> float:
    """The loss of a reader who knows the grammar: the mean of -log p over the targets (nats)."""
    return float(-batch.probabilities.log().mean())


def encode(words: Sequence[str]) -> Int[Tensor, " N"]:
    """Words as tokens. Raises ValueError for a word that the grammar does not have."""
    unknown = [word for word in words if word not in TOKEN]
    if unknown:
        raise ValueError(f"words must be of the grammar's {len(WORDS)}, got {unknown[0]!r}")
    return torch.tensor([TOKEN[word] for word in words])


def decode(tokens: Int[Tensor, " N"]) -> list[str]:
    """Tokens as words."""
    return [WORDS[token] for token in tokens.tolist()]


@torch.no_grad()
def right_choices(
    model: torch.nn.Module, documents: Sequence[Document], kind: str
) -> Float[Tensor, " dependencies"]:
    """For each dependency of a kind: 1 where the model prefers the right word to every wrong one.

    `model` gives logits (batch, N, vocabulary) for the word after each position, as `DecoderLM`.
    """
    check_choice("kind", kind, ("agreement", "bracket", "topic"))
    results = []
    for document in documents:
        logits = model(encode(document.words)[None])[0]
        for dependency in document.dependencies:
            if dependency.kind == kind:
                before = logits[dependency.position - 1]
                right, wrong = before[TOKEN[dependency.right]], before[encode(dependency.wrong)]
                results.append(float(right > wrong.max()))
    return torch.tensor(results)
