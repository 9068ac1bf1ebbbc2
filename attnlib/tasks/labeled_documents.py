"""Documents with several labels, each given by one word, and a note to every word."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, distinct, generator_from

TOPICS, NAMES = 2, 4  # words for each label: topic words, names known, and as many names new


class DocumentBatch(NamedTuple):
    """tokens: the document and its notes; targets: 1.0 for each label that holds."""

    tokens: Int[Tensor, "B 2 N"]
    targets: Float[Tensor, "B L"]


@dataclass(frozen=True)
class LabeledDocuments(Task):
    """Each of a document's labels shows in one word, a topic word or a name; the rest is filler.

    A name says nothing by itself, but its note is a topic word of its label. The note of any other
    word is a filler. With `new_names` every label shows in a name from a list of its own, which
    documents without `new_names` never use; the notes use the same topic words as ever.
    """

    labels: int = 5
    held: int = 2
    length: int = 16
    fillers: int = 60
    new_names: bool = False

    def __post_init__(self):
        check_sizes(labels=self.labels, held=self.held, length=self.length, fillers=self.fillers)
        if self.held > min(self.labels, self.length):
            raise ValueError(
                f"held must be at most labels = {self.labels} and length = {self.length}, "
                f"got {self.held}"
            )

    @property
    def words(self) -> int:
        """How many words there are."""
        return self.fillers + self.labels * (TOPICS + 2 * NAMES)

    def batch(self, size: int, seed: int | torch.Generator) -> DocumentBatch:
        """Documents with `held` labels each."""
        generator = generator_from(seed)

        def below(limit: int, *shape: int) -> Tensor:
            return torch.randint(limit, (size, *shape), generator=generator)

        label = distinct(size, self.held, self.labels, generator)
        place = distinct(size, self.held, self.length, generator)
        topic = self.fillers + TOPICS * label + below(TOPICS, self.held)
        first_name = self.fillers + TOPICS * self.labels + 2 * NAMES * label
        name = first_name + below(NAMES, self.held) + NAMES * self.new_names
        named = (below(2, self.held) == 1) | self.new_names
        document, notes = below(self.fillers, self.length), below(self.fillers, self.length)
        notes.scatter_(1, place, torch.where(named, topic, notes.gather(1, place)))
        document.scatter_(1, place, torch.where(named, name, topic))
        targets = torch.zeros(size, self.labels).scatter_(1, label, 1.0)
        return DocumentBatch(torch.stack((document, notes), dim=1), targets)
