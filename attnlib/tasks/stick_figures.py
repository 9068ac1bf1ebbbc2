"""Stick figures seen badly: some joints are missing, and some figures are reported twice."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, generator_from

SKELETON = (
    ("head", 0.0, 1.0),
    ("neck", 0.0, 0.6),
    ("left hand", -0.7, 0.3),
    ("right hand", 0.7, 0.3),
    ("hip", 0.0, -0.2),
    ("left foot", -0.4, -1.0),
    ("right foot", 0.4, -1.0),
)
"""Joints of a figure of size one that stands upright: name, right, up."""

JOINTS = len(SKELETON)
PARTS = JOINTS + 1
"""Tokens of an instance: its joints and one for the whole."""


class FigureBatch(NamedTuple):
    """What was reported of each instance, and where its joints are.

    `seen` holds (right, up, 1) for a joint that is seen and zeros for one that is missing; its last
    row, for the whole, is the mean of what is seen.
    """

    seen: Float[Tensor, "batch instances parts 3"]
    joints: Float[Tensor, "batch instances joints 2"]


@dataclass(frozen=True)
class StickFigures(Task):
    """`people` figures, each reported twice: 2 * people instances in random order.

    A figure is the skeleton, turned, scaled and moved at random. A report misses each joint with
    odds `missing` and adds noise to the others. To be told: where all joints of each instance are.
    A missing joint follows from the other joints of the instance, and it may have been seen in the
    second report of the same figure. The order of joints never changes.
    """

    people: int = 2
    missing: float = 0.4
    noise: float = 0.05

    def __post_init__(self):
        check_sizes(people=self.people)
        if not 0 <= self.missing < 1:
            raise ValueError(f"missing must lie in [0, 1), got {self.missing}")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    @property
    def instances(self) -> int:
        """How many reports there are."""
        return 2 * self.people

    def batch(self, size: int, seed: int | torch.Generator) -> FigureBatch:
        """Reports with what is true of them."""
        generator = generator_from(seed)
        figures = random_figures(size, self.people, generator).repeat_interleave(2, dim=1)
        order = torch.rand(size, self.instances, generator=generator).argsort(-1)
        figures = figures.take_along_dim(order[..., None, None], dim=1)
        reported = figures + self.noise * torch.randn(figures.shape, generator=generator)
        there = torch.rand(figures.shape[:-1], generator=generator) >= self.missing
        there = there[..., None].float()
        seen = torch.cat((reported * there, there), dim=-1)
        whole = seen.sum(-2, keepdim=True) / there.sum(-2, keepdim=True).clamp(min=1)
        return FigureBatch(torch.cat((seen, whole), dim=-2), figures)


def random_figures(
    size: int, people: int, generator: torch.Generator
) -> Float[Tensor, "batch people joints 2"]:
    """The skeleton, turned by up to a radian, scaled by 0.5 to 1 and moved by up to 2."""
    angle = 2 * torch.rand(size, people, 1, 1, generator=generator) - 1
    scale = 0.5 + torch.rand(size, people, 1, 1, generator=generator) / 2
    middle = 4 * torch.rand(size, people, 1, 2, generator=generator) - 2
    right, up = torch.tensor([joint[1:] for joint in SKELETON]).unbind(-1)
    turned = torch.stack(
        (
            angle[..., 0].cos() * right - angle[..., 0].sin() * up,
            angle[..., 0].sin() * right + angle[..., 0].cos() * up,
        ),
        dim=-1,
    )
    return middle + scale * turned
