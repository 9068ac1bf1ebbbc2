"""Spans behind keys: a question of many words, of which one stands in the context."""

from dataclasses import dataclass

import torch

from attnlib.tasks.span_answering import SpanBatch
from attnlib.tasks.task import Task, check_sizes, distinct, generator_from


@dataclass(frozen=True)
class KeyedSpans(Task):
    """Context: `facts` times "entity word word". Question: `asked` entities, one of them present.

    The answer is the span of two words behind the entity that question and context share. The more
    entities the question names, the harder it is to say it in one vector of fixed width.

    Tokens: entities from 0 on, then words. Shapes: context (batch, 3 facts), question
    (batch, asked), start and end (batch,).
    """

    facts: int = 6
    asked: int = 8
    entities: int = 64
    words: int = 20

    def __post_init__(self):
        check_sizes(facts=self.facts, asked=self.asked, entities=self.entities, words=self.words)
        if self.entities < self.facts + self.asked - 1:
            raise ValueError(
                f"entities must be at least facts + asked - 1 = {self.facts + self.asked - 1}, "
                f"got {self.entities}"
            )

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.entities + self.words

    @property
    def chance(self) -> float:
        """Share of right spans for a reader who knows the facts but not the question."""
        return 1 / self.facts

    @property
    def optimum(self) -> float:
        """Share of right spans for a reader who compares every pair."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> SpanBatch:
        """Contexts with one question each."""
        generator = generator_from(seed)
        named = distinct(size, self.facts + self.asked - 1, self.entities, generator)
        present, absent = named[:, : self.facts], named[:, self.facts :]
        words = torch.randint(self.words, (size, self.facts, 2), generator=generator)
        context = torch.cat((present[..., None], words + self.entities), dim=-1).flatten(1)
        fact = torch.randint(self.facts, (size, 1), generator=generator)
        question = torch.cat((present.gather(1, fact), absent), dim=1)
        order = distinct(size, self.asked, self.asked, generator)
        start = 3 * fact[:, 0] + 1
        return SpanBatch(context, question.gather(1, order), start, start + 1)
