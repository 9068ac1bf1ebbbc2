"""Pictures of a few things, questions about a thing in words, one thing as a subject of its own.

A thing has one of `values` values in each of `attributes` attributes. A picture is a list of
things, each a tuple of values. A question describes a thing by words and asks whether it is there,
or for one of its attributes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, generator_from


class PictureQuestions(NamedTuple):
    """Pictures, the words that describe a thing, what is asked, and the answer."""

    pictures: Int[Tensor, "B things attributes"]
    words: Int[Tensor, "B attributes"]
    """A value of each attribute."""
    asked: Int[Tensor, " B"]
    """0: is it in the picture? a >= 1: what is its attribute a - 1?"""
    targets: Int[Tensor, " B"]
    """0 no, 1 yes, or 2 + the value."""


@dataclass(frozen=True)
class PictureQuestionTask(Task):
    """Questions of both kinds about random things; half of the pictures show the thing.

    Where it is missing, the first thing of the picture is one that differs from it in a single
    attribute (a hard negative). With a `subject`, a tuple of values, every question is about it.
    """

    things: int = 3
    attributes: int = 3
    values: int = 5
    subject: tuple[int, ...] | None = None

    def __post_init__(self):
        check_sizes(things=self.things, attributes=self.attributes, values=self.values)
        if self.subject is not None and (
            len(self.subject) != self.attributes
            or not all(0 <= value < self.values for value in self.subject)
        ):
            raise ValueError(
                f"subject must have {self.attributes} values in 0 ... {self.values - 1}, "
                f"got {self.subject}"
            )

    @property
    def answers(self) -> int:
        """How many answers there are: no, yes and the values."""
        return 2 + self.values

    def batch(self, size: int, seed: int | torch.Generator) -> PictureQuestions:
        """Questions, half of them whether the thing is there."""
        generator = generator_from(seed)

        def drawn(*shape: int, below: int) -> Tensor:
            return torch.randint(below, shape, generator=generator)

        words = drawn(size, self.attributes, below=self.values)
        if self.subject is not None:
            words = torch.tensor(self.subject).expand(size, -1)
        pictures = drawn(size, self.things, self.attributes, below=self.values)
        changed = drawn(size, 1, below=self.attributes)
        shift = 1 + drawn(size, 1, below=self.values - 1)
        near = words.scatter(1, changed, (words.gather(1, changed) + shift) % self.values)
        shown = drawn(size, below=2).bool()
        pictures[:, 0] = torch.where(shown[:, None], words, near)
        order = torch.rand(size, self.things, generator=generator).argsort(-1)
        pictures = pictures.gather(1, order[..., None].expand(-1, -1, self.attributes))
        there = (pictures == words[:, None]).all(-1).any(-1)
        asked = drawn(size, below=2) * (1 + drawn(size, below=self.attributes))
        values = words.gather(1, (asked - 1).clamp(min=0)[:, None])[:, 0]
        targets = torch.where(asked == 0, there.long(), 2 + values)
        return PictureQuestions(pictures, words, asked, targets)
