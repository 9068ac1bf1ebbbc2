"""Counting in three domains: what is a person in one of them is clutter in another."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, generator_from

DOMAINS = 3


class Scenes(NamedTuple):
    """Scenes of T places, the share of places with a person, and the domain."""

    x: Float[Tensor, "B T C"]
    targets: Float[Tensor, " B"]
    domain: Int[Tensor, " B"]


@dataclass(frozen=True)
class CountingDomains(Task):
    """What share of the places holds a person?

    In domain d a person shows in channel d and clutter in channel d + 1 (of three, in a circle),
    each at a place with a chance of its own that is drawn for the scene. With `conflict=False` a
    person shows in channel 0 and clutter in channel 1 everywhere. Three more channels hold the
    background: the one of the domain is raised by `mark`. Noise of deviation `noise` lies over all.
    """

    places: int = 16
    mark: float = 1.0
    noise: float = 0.5
    conflict: bool = True

    def __post_init__(self):
        check_sizes(places=self.places)

    @property
    def channels(self) -> int:
        """Three channels for what is to be counted, three for the background."""
        return 2 * DOMAINS

    def batch(self, size: int, seed: int | torch.Generator) -> Scenes:
        """Scenes of all domains, drawn with equal chance."""
        generator = generator_from(seed)
        domain = torch.randint(DOMAINS, (size,), generator=generator)
        chance = torch.rand(size, 2, 1, generator=generator)
        person, clutter = (
            (torch.rand(size, 2, self.places, generator=generator) < chance).float().unbind(1)
        )
        shown = domain if self.conflict else torch.zeros_like(domain)
        unit = torch.eye(self.channels)
        x = (
            person[..., None] * unit[shown][:, None]
            + clutter[..., None] * unit[(shown + 1) % DOMAINS][:, None]
            + self.mark * unit[DOMAINS + domain][:, None]
        )
        noise = torch.randn(x.shape, generator=generator)
        return Scenes(x + self.noise * noise, person.mean(1), domain)
