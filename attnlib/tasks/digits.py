"""Handwritten digits: 1797 real images of 8 x 8 pixels, kept in the package.

Origin and licence stand in `digits-licence.txt` beside the data.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.choices import check_choice
from attnlib.tasks.task import Task, generator_from

SPLIT_SEED = 0
TEST_IMAGES = 360


class DigitBatch(NamedTuple):
    """Images with gray values in [0, 1], and the digits they show."""

    images: Float[Tensor, "batch 1 8 8"]
    labels: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Digits(Task):
    """Random images of one part: "train" (1437 images) or "test" (360 others).

    The parts are a fixed random split; the writers of both are the same thirteen.
    """

    part: str = "train"

    def __post_init__(self):
        check_choice("part", self.part, ("train", "test"))

    @property
    def classes(self) -> int:
        """How many digits there are."""
        return 10

    @property
    def chance(self) -> float:
        """Accuracy of always naming the digit that is most frequent in this part."""
        labels = self.all().labels
        return float(labels.bincount().max() / len(labels))

    def all(self) -> DigitBatch:
        """Every image of this part, in a fixed order."""
        images, labels = load_digits()
        order = torch.randperm(len(labels), generator=generator_from(SPLIT_SEED))
        rows = order[:-TEST_IMAGES] if self.part == "train" else order[-TEST_IMAGES:]
        return DigitBatch(images[rows], labels[rows])

    def batch(self, size: int, seed: int | torch.Generator) -> DigitBatch:
        """Images drawn with repetition."""
        images, labels = self.all()
        rows = torch.randint(len(labels), (size,), generator=generator_from(seed))
        return DigitBatch(images[rows], labels[rows])


@cache
def load_digits() -> DigitBatch:
    """All images in the order of scikit-learn's `load_digits`."""
    with files("attnlib.tasks").joinpath("digits.npz").open("rb") as file, np.load(file) as stored:
        images, labels = stored["images"], stored["labels"]
    return DigitBatch(
        torch.from_numpy(images).float().div(16)[:, None], torch.from_numpy(labels).long()
    )
