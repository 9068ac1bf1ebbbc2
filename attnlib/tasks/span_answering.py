"""Span answering: a context of facts, a question that names one, and the span that answers it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, distinct, generator_from


class SpanBatch(NamedTuple):
    """Context and question, padded with `SpanAnswering.padding`, and the answer's two ends."""

    context: Int[Tensor, "batch N"]
    question: Int[Tensor, "batch M"]
    start: Int[Tensor, " batch"]
    end: Int[Tensor, " batch"]


@dataclass(frozen=True)
class SpanAnswering(Task):
    """Facts "entity attribute word ... word"; the question names an entity and an attribute.

    Each answer has 1 to `longest` words. Entity and attribute are both needed: the fact before or
    after the right one shares its entity, and others share its attribute. In the question the two
    stand in either order among `fillers` filler words, at random places. `start` and `end` are the
    first and the last place of the answer in the context, both included.

    Tokens: entities, attributes, words, fillers, then the padding. Facts are a random choice of
    `facts` cells of the table entities x attributes, two for each chosen entity.
    Shapes: context (batch, facts * (2 + longest)), question (batch, 2 + fillers).
    """

    facts: int = 6
    entities: int = 6
    attributes: int = 4
    words: int = 20
    longest: int = 3
    fillers: int = 2

    def __post_init__(self):
        check_sizes(
            facts=self.facts,
            entities=self.entities,
            attributes=self.attributes,
            words=self.words,
            longest=self.longest,
        )
        if self.facts % 2 or self.facts // 2 > self.entities:
            raise ValueError(
                f"facts must be even and at most 2 * entities = {2 * self.entities}, "
                f"got {self.facts}"
            )
        if self.attributes < 2:
            raise ValueError(f"attributes must be at least 2, got {self.attributes}")
        if self.fillers < 0:
            raise ValueError(f"fillers must be at least 0, got {self.fillers}")

    @property
    def first_attribute(self) -> int:
        """The lowest token that is an attribute; entities begin at 0."""
        return self.entities

    @property
    def first_word(self) -> int:
        """The lowest token that is a word of an answer."""
        return self.entities + self.attributes

    @property
    def filler(self) -> int:
        """The first of two filler words of questions."""
        return self.first_word + self.words

    @property
    def padding(self) -> int:
        """The token after the end of a context."""
        return self.filler + 2

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.padding + 1

    @property
    def context_length(self) -> int:
        """The length of every context, with its padding."""
        return self.facts * (2 + self.longest)

    @property
    def chance(self) -> float:
        """Share of right spans for a reader who knows the facts but not the question."""
        return 1 / self.facts

    @property
    def entity_only(self) -> float:
        """Share of right spans for a reader who uses the entity but not the attribute."""
        return 1 / 2

    @property
    def optimum(self) -> float:
        """Share of right spans for a reader of both."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> SpanBatch:
        """Contexts with one question each."""
        generator = generator_from(seed)
        entity = distinct(size, self.facts // 2, self.entities, generator)
        entity = entity.repeat_interleave(2, dim=1)
        attribute = distinct(size * self.facts // 2, 2, self.attributes, generator)
        attribute = attribute.reshape(size, self.facts) + self.first_attribute
        named = torch.stack((entity, attribute), dim=-1)
        lengths = torch.randint(1, self.longest + 1, (size, self.facts), generator=generator)

        asked = torch.randint(self.facts, (size, 1), generator=generator)
        after = (lengths + 2).cumsum(1).gather(1, asked)[:, 0]
        start = after - lengths.gather(1, asked)[:, 0]
        context = self._context(named, lengths, generator)
        question = self._question(named[torch.arange(size), asked[:, 0]], generator)
        return SpanBatch(context, question, start, after - 1)

    def _context(self, named: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """The facts one after the other: written in full width, then padding moved to the end."""
        shape = (*lengths.shape, self.longest)
        words = torch.randint(self.words, shape, generator=generator) + self.first_word
        missing = torch.arange(self.longest) >= lengths[..., None]
        words = words.masked_fill(missing, self.padding)
        context = torch.cat((named, words), dim=-1).flatten(1)
        order = (context == self.padding).long().argsort(dim=1, stable=True)
        return context.gather(1, order)

    def _question(self, named: Tensor, generator: torch.Generator) -> Tensor:
        """Entity and attribute among filler words, in any order."""
        shape = (len(named), self.fillers)
        fillers = torch.randint(2, shape, generator=generator) + self.filler
        words = torch.cat((named, fillers), dim=1)
        return words.gather(1, distinct(len(words), words.shape[1], words.shape[1], generator))
