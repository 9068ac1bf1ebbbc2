"""A tiny denoiser that draws scenes from words by cross-attention."""

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attnlib.models.blocks import Block
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.positions import TOKEN_SCALE
from attnlib.models.vision import patches
from attnlib.tasks.scenes import MY, SIZE, SOME, TOKEN, WORDS
from attnlib.tasks.task import Task, generator_from

PATCH, PLACES_OF_WORDS = 2, 7


class WordAttention(MultiHeadAttention):
    """Patches read words. Which words mean the subject (`subject`) makes no difference here."""

    def forward(
        self,
        pixels: Float[Tensor, "batch N width"],
        words: Float[Tensor, "batch M width"],
        subject: Bool[Tensor, "batch M"] | None = None,
    ) -> Float[Tensor, "batch N width"]:
        """What each patch reads of the words."""
        return super().forward(pixels, words)


class SceneBlock(nn.Module):
    """Patches read patches, then words, then each thinks for itself.

    Shapes: x (batch, N, width), words (batch, M, width) -> (batch, N, width).
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.word_norm = nn.LayerNorm(width)
        self.word_attention = WordAttention(width, heads)
        self.block = Block(width, heads)

    def forward(self, x: Tensor, words: Tensor, subject: Tensor) -> Tensor:
        """The next patches."""
        x = x + self.word_attention(self.word_norm(x), words, subject)
        return self.block(x)


class SceneDenoiser(nn.Module):
    r"""The clean scene, guessed from a noisy one, the level of noise, and words.

    .. math:: x_t = (1 - t)\, x_0 + t\, \epsilon, \qquad \hat x_0 = f(x_t, t, \mathrm{words})

    The image is cut into 64 patches of 2 x 2 pixels; positions are learnt vectors, as are those of
    the seven words. The three words of an object know each other (`bound`). The word `my` is read
    as `some`: only a personal branch knows what it means.
    Shapes: images (batch, 3, 16, 16), level (batch,), words (batch, 7) -> (batch, 3, 16, 16).
    Raises ValueError for other shapes and for tokens that are no words.
    """

    def __init__(self, *, width: int = 48, heads: int = 4, layers: int = 2, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.word_vectors = nn.Embedding(len(WORDS), width)
            self.word_places = nn.Parameter(torch.randn(PLACES_OF_WORDS, width) * TOKEN_SCALE)
            self.to_patch = nn.Linear(3 * PATCH**2, width)
            self.patch_places = nn.Parameter(torch.randn((SIZE // PATCH) ** 2, width) * TOKEN_SCALE)
            self.to_level = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width))
            self.blocks = nn.ModuleList(SceneBlock(width, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.to_pixels = nn.Linear(width, 3 * PATCH**2)

    def forward(
        self,
        images: Float[Tensor, "batch 3 16 16"],
        level: Float[Tensor, " batch"],
        words: Int[Tensor, "batch 7"],
    ) -> Float[Tensor, "batch 3 16 16"]:
        """The guess of the clean images."""
        _check_scene(images, level, words)
        subject = words == TOKEN[MY]
        known = torch.where(subject, TOKEN[SOME], words)
        vectors = bound(self.word_vectors(known) + self.word_places)
        x = self.to_patch(patches(images, PATCH)) + self.patch_places
        x = x + self.to_level(level[:, None])[:, None]
        for block in self.blocks:
            x = block(x, vectors, subject)
        return _images(self.to_pixels(self.norm(x)))


def bound(vectors: Float[Tensor, "batch 7 width"]) -> Float[Tensor, "batch 7 width"]:
    """Each word of an object with the sum of its object's words added; the ground as it is."""
    ground, objects = vectors[:, :1], vectors[:, 1:].unflatten(1, (2, 3))
    together = objects + objects.sum(2, keepdim=True)
    return torch.cat((ground, together.flatten(1, 2)), dim=1)


def noisy_scenes(task: Task, size: int, seed: int | torch.Generator) -> Iterator[tuple]:
    """Batches (noisy images, levels, scenes): levels are drawn evenly from 0 ... 1."""
    generator = generator_from(seed)
    for scenes in task.batches(size, generator):
        level = torch.rand(size, generator=generator)
        noise = torch.randn(scenes.images.shape, generator=generator)
        t = level[:, None, None, None]
        yield (1 - t) * scenes.images + t * noise, level, scenes


def scene_loss(model: nn.Module, batch: tuple) -> tuple[Tensor, Tensor]:
    """The mean squared error of the guess, as an objective for `train` (twice: no accuracy)."""
    noisy, level, scenes = batch
    loss = (model(noisy, level, scenes.words) - scenes.images).square().mean()
    return loss, loss.detach()


@torch.no_grad()
def draw(
    model: nn.Module,
    words: Int[Tensor, "batch 7"],
    noise: Float[Tensor, "batch 3 16 16"],
    *,
    steps: int = 8,
) -> Float[Tensor, "batch 3 16 16"]:
    """A scene from words: from noise to the guess in `steps` even steps, without further chance.

    Each step guesses the clean image and moves to the next level along the line from that guess to
    the noise which it implies. Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    x = noise
    for step in range(steps, 0, -1):
        level, lower = step / steps, (step - 1) / steps
        clean = model(x, torch.full((len(x),), level), words)
        implied = (x - (1 - level) * clean) / level
        x = (1 - lower) * clean + lower * implied
    return x


def patch_masks(masks: Bool[Tensor, "batch 16 16"]) -> Float[Tensor, "batch N"]:
    """The share of each patch that a mask covers, patches in the order of the model."""
    return patches(masks[:, None].float(), PATCH).mean(-1)


def _images(pixels: Float[Tensor, "batch N pixels"]) -> Float[Tensor, "batch 3 16 16"]:
    side = SIZE // PATCH
    return rearrange(pixels, "b (y x) (c p q) -> b c (y p) (x q)", y=side, x=side, p=PATCH, q=PATCH)


def _check_scene(images: Tensor, level: Tensor, words: Tensor) -> None:
    batch = len(images)
    wanted = {"images": (batch, 3, SIZE, SIZE), "level": (batch,), "words": (batch, 7)}
    for (name, shape), tensor in zip(wanted.items(), (images, level, words), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if words.numel() and not 0 <= int(words.min()) <= int(words.max()) < len(WORDS):
        raise ValueError(f"words must lie in 0 ... {len(WORDS) - 1}, got {int(words.max())}")
