"""Small scenes from words: a ground and two colored shapes, each in a quarter of the image."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.choices import check_choice
from attnlib.tasks.shapes import COLORS, SHAPES, draw_shapes
from attnlib.tasks.task import Task, distinct, generator_from

GROUNDS = {
    "night": (0.05, 0.05, 0.15),
    "sand": (0.75, 0.65, 0.45),
    "lawn": (0.15, 0.35, 0.15),
    "sky": (0.55, 0.7, 0.85),
}
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
SOME, MY = "some", "my"
WORDS = (*GROUNDS, *COLORS, SOME, MY, *SHAPES, *PLACES)
"""The vocabulary: the token of a word is its place in this tuple."""

TOKEN = {word: token for token, word in enumerate(WORDS)}
SIZE, RADIUS = 16, 3
STRIPES = ((0.9, 0.1, 0.8), (1.0, 1.0, 1.0))
"""What is mine looks like no color of the words: its rows are magenta and white by turns."""


class SceneBatch(NamedTuple):
    """Images, the words that describe them, and the pixels of the two objects."""

    images: Float[Tensor, "batch 3 16 16"]
    words: Int[Tensor, "batch 7"]
    masks: Bool[Tensor, "batch 2 16 16"]


@dataclass(frozen=True)
class Scenes(Task):
    """Scenes such as `sand red disk top-left blue cross bottom-right`.

    The first word names the ground; then come color, shape and place of the first object and of the
    second, in different quarters. The color word `some` stands for any of the four colors; of the
    first objects a share `vague` is described so. All else is decided by the words. With `personal`
    the first object is `my`: it has stripes, which no other word brings; the rest is as always.
    `ground` names the one ground of all scenes; unless given, every ground comes up.
    """

    vague: float = 0.2
    personal: bool = False
    ground: str | None = None

    def __post_init__(self):
        if not 0 <= self.vague <= 1:
            raise ValueError(f"vague must lie in 0 ... 1, got {self.vague}")
        if self.ground is not None:
            check_choice("ground", self.ground, tuple(GROUNDS))

    @property
    def vocabulary(self) -> int:
        """How many words there are."""
        return len(WORDS)

    def batch(self, size: int, seed: int | torch.Generator) -> SceneBatch:
        """Scenes with their words and masks."""
        generator = generator_from(seed)
        ground = torch.randint(len(GROUNDS), (size,), generator=generator)
        if self.ground is not None:
            ground = torch.full_like(ground, TOKEN[self.ground])
        color, shape = torch.randint(4, (2, size, 2), generator=generator).unbind()
        place = distinct(size, 2, len(PLACES), generator)
        vague = torch.rand(size, generator=generator) < self.vague

        named = color + TOKEN["red"]
        named[vague, 0] = TOKEN[SOME]
        if self.personal:
            named[:, 0] = TOKEN[MY]
        objects = torch.stack((named, shape + TOKEN["disk"], place + TOKEN["top-left"]), dim=-1)
        words = torch.cat((ground[:, None], objects.flatten(1)), dim=1)

        masks = _masks(shape, place)
        palette = torch.tensor(list(COLORS.values()))[color][..., None, None].expand(
            size, 2, 3, SIZE, SIZE
        )
        if self.personal:
            palette = torch.cat((_stripes().expand(size, 1, 3, SIZE, SIZE), palette[:, 1:]), dim=1)
        behind = torch.tensor(list(GROUNDS.values()))[ground][..., None, None]
        painted = (masks[:, :, None] * palette).sum(1)
        images = torch.where(masks.any(1)[:, None], painted, behind)
        return SceneBatch(images, words, masks)


def describe(words: Int[Tensor, " 7"]) -> str:
    """The words of one scene as text."""
    return " ".join(WORDS[word] for word in words.tolist())


def _masks(shape: Tensor, place: Tensor) -> Bool[Tensor, "batch 2 16 16"]:
    corner = torch.stack((place // 2, place % 2), dim=-1) * (SIZE // 2)
    drawn = draw_shapes(corner + RADIUS, torch.full_like(place, RADIUS), SIZE)
    return drawn.take_along_dim(shape[:, None, :, None, None], dim=1)[:, 0]


def _stripes() -> Float[Tensor, "3 16 16"]:
    rows = torch.arange(SIZE) % len(STRIPES)
    return torch.tensor(STRIPES)[rows].T[..., None].expand(3, SIZE, SIZE)
