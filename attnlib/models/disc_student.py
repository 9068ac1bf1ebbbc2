"""A denoiser whose attention is exchanged for a cheaper one, which learns from the old one."""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.attend import attend
from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.models.positions import TOKEN_SCALE
from attnlib.models.vision import patches
from attnlib.patterns.grid import disc
from attnlib.read.disc_attention import disc_attention
from attnlib.read.heads import merge_heads, split_heads
from attnlib.read.linear_attention import linear_attention
from attnlib.score.positions import rotate
from attnlib.support import dense, from_mask
from attnlib.tasks.shapes import ColoredShapes
from attnlib.tasks.task import generator_from
from attnlib.training import train

PATCH, RADIUS = 2, 2.5
GridRead = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]
"""(query, key, value, grid) -> read."""


def read_all(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """Full softmax attention, the teacher's."""
    return nn.functional.scaled_dot_product_attention(query, key, value)


def read_disc(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """Softmax attention to the disc around each place."""
    return disc_attention(query, key, value, grid=grid, radius=RADIUS)


def read_linear(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """Linear attention to all places."""
    return linear_attention(query, key, value)


def read_scattered(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """The control of `read_disc`: as many keys for each place, but drawn from the whole grid."""
    return attend(query, key, value, support=from_mask(scattered(grid)))


def scattered(grid: tuple[int, int]) -> Tensor:
    """For each place itself and random others, as many as its disc has: always the same table."""
    places = grid[0] * grid[1]
    keys = dense(disc(grid, RADIUS), places, places)[0, 0].sum(-1, keepdim=True)
    draws = torch.rand(places, places, generator=torch.Generator().manual_seed(0))
    draws.fill_diagonal_(2.0)
    rank = draws.argsort(-1, descending=True).argsort(-1)
    return rank < keys


STUDENTS: dict[str, GridRead] = {
    "disc": read_disc,
    "scattered": read_scattered,
    "linear": read_linear,
}


class GridAttention(nn.Module):
    """Multi-head attention of a grid to itself; rotary positions of rows and columns.

    Half of each head's coordinates turn with the row and half with the column, so scores know
    displacements alone and any grid will do. `read` may be exchanged at any time.
    Shapes: x (batch, rows * columns, width) -> the same.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if heads < 1 or width % (4 * heads):
            raise ValueError(f"heads times 4 must divide width {width}, got {heads} heads")
        self.heads, self.read = heads, read_all
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.to_output = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch N width"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch N width"]:
        """What each place reads."""
        query, key, value = (
            split_heads(layer(x), self.heads)
            for layer in (self.to_query, self.to_key, self.to_value)
        )
        query, key = turned(query, grid), turned(key, grid)
        return self.to_output(merge_heads(self.read(query, key, value, grid)))


def turned(x: Float[Tensor, "*heads N D"], grid: tuple[int, int]) -> Float[Tensor, "*heads N D"]:
    """Rotary encoding: the row turns the first half of the coordinates, the column the other."""
    rows, columns = torch.unravel_index(torch.arange(grid[0] * grid[1]), grid)
    of_rows, of_columns = x.chunk(2, dim=-1)
    return torch.cat((rotate(of_rows, rows, 100.0), rotate(of_columns, columns, 100.0)), dim=-1)


class GridDenoiser(nn.Module):
    r"""The clean image, guessed from x_t = (1 - t) x_0 + t noise and t, at any size.

    Patches of 2 x 2 pixels are tokens; there are no other positions than those of `GridAttention`.
    Shapes: images (batch, 3, size, size), level (batch,) -> the guess and the list of what each
    attention layer gave, (batch, N, width) each.
    Raises ValueError for images that are no whole number of patches.
    """

    def __init__(self, *, width: int = 48, heads: int = 2, layers: int = 2, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(3 * PATCH**2, width)
            self.level = nn.Parameter(torch.randn(width) * TOKEN_SCALE)
            self.attentions = nn.ModuleList(GridAttention(width, heads) for _ in range(layers))
            self.perceptrons = nn.ModuleList(
                nn.Sequential(
                    nn.LayerNorm(width),
                    nn.Linear(width, 2 * width),
                    nn.GELU(),
                    nn.Linear(2 * width, width),
                )
                for _ in range(layers)
            )
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))
            self.to_pixels = nn.Linear(width, 3 * PATCH**2)

    def forward(
        self, images: Float[Tensor, "batch 3 size size"], level: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch 3 size size"], list[Tensor]]:
        """The guess, and the reads of all attention layers."""
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[-1] % PATCH:
            raise ValueError(
                f"images must have shape (batch, 3, size, size) with size a multiple of {PATCH}, "
                f"got {tuple(images.shape)}"
            )
        grid = (images.shape[-2] // PATCH, images.shape[-1] // PATCH)
        x = self.embedding(patches(images, PATCH)) + level[:, None, None] * self.level
        reads = []
        for norm, attention, perceptron in zip(
            self.norms, self.attentions, self.perceptrons, strict=False
        ):
            reads.append(attention(norm(x), grid))
            x = x + reads[-1]
            x = x + perceptron(x)
        pixels = self.to_pixels(self.norms[-1](x))
        guess = rearrange(pixels, "b (y x) (c p q) -> b c (y p) (x q)", y=grid[0], p=PATCH, q=PATCH)
        return guess, reads


class NoisyShapes(NamedTuple):
    """Noisy images, their levels of noise, and the clean images."""

    images: Float[Tensor, "batch 3 size size"]
    level: Float[Tensor, " batch"]
    clean: Float[Tensor, "batch 3 size size"]


def noisy_shapes(size: int, batch: int, seed: int | torch.Generator) -> Iterator[NoisyShapes]:
    """Colored shapes 7 pixels wide, one for each 8 x 8 pixels, at random levels of noise."""
    check_count("size", size, least=8)
    task, generator = ColoredShapes(size, objects=(size // 8) ** 2), generator_from(seed)
    while True:
        clean = task.batch(batch, generator).images
        level = torch.rand(batch, generator=generator)
        t = level[:, None, None, None]
        noise = torch.randn(clean.shape, generator=generator)
        yield NoisyShapes((1 - t) * clean + t * noise, level, clean)


def denoising(model: nn.Module, batch: NoisyShapes) -> tuple[Tensor, Tensor]:
    """The mean squared error of the guess, as an objective for `train` (twice: no accuracy)."""
    loss = (model(batch.images, batch.level)[0] - batch.clean).square().mean()
    return loss, loss.detach()


def trained_teacher(seed: int, *, steps: int = 250) -> GridDenoiser:
    """A denoiser with full attention, trained on images of 16 x 16 pixels."""
    teacher = GridDenoiser(seed=seed)
    batches = noisy_shapes(16, 16, seed)
    train(teacher, batches, steps=steps, objective=denoising, progress=False)
    return teacher.requires_grad_(False)


def student_of(teacher: GridDenoiser, attention: str) -> GridDenoiser:
    """A copy of the teacher with another read in its attention layers, which alone may learn.

    Raises ValueError for an attention that is not in STUDENTS.
    """
    check_choice("attention", attention, tuple(STUDENTS))
    student = copy.deepcopy(teacher).requires_grad_(False)
    for layer in student.attentions:
        layer.read = STUDENTS[attention]
        layer.requires_grad_(True)
    return student


def distillation(teacher: GridDenoiser) -> Callable:
    r"""The objective of a student, with the paper's weights of one half.

    .. math:: L = |f - x_0|^2 + \tfrac12 |f - f_T|^2 + \tfrac12 \, \mathrm{mean}_l |a_l - a_{T,l}|^2

    with f the guess, a_l the read of layer l, T the teacher, squares averaged over all entries.
    Source: Liu et al. (2024), CLEAR, eqs. 5 to 7.
    """

    def objective(student: nn.Module, batch: NoisyShapes) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wanted, wanted_reads = teacher(batch.images, batch.level)
        guess, reads = student(batch.images, batch.level)
        clean = (guess - batch.clean).square().mean()
        output = (guess - wanted).square().mean()
        layers = [
            (read - target).square().mean()
            for read, target in zip(reads, wanted_reads, strict=True)
        ]
        return clean + output / 2 + sum(layers) / len(layers) / 2, output.detach()

    return objective


@torch.no_grad()
def distance(student: GridDenoiser, teacher: GridDenoiser, size: int, seed: int) -> float:
    """The squared difference of the guesses on new images, over the variance of the teacher's."""
    batch = next(noisy_shapes(size, 64, 10_000 + seed))
    wanted = teacher(batch.images, batch.level)[0]
    guess = student(batch.images, batch.level)[0]
    return ((guess - wanted).square().mean() / wanted.var()).item()


def distill(
    student: str, seed: int, *, teacher_steps: int = 250, steps: int = 150
) -> dict[str, float]:
    """Trains a teacher, then a student with another attention, both on images of 16 x 16 pixels.

    Returns the distance of the student from the teacher before (`untrained`) and after (`error`),
    and the squared error of both against clean images, at the size of training and at twice it.
    """
    teacher = trained_teacher(seed, steps=teacher_steps)
    learner = student_of(teacher, student)
    untrained = distance(learner, teacher, 16, seed)
    batches, objective = noisy_shapes(16, 16, 1000 + seed), distillation(teacher)
    train(learner, batches, steps=steps, objective=objective, progress=False)
    return {
        "untrained": untrained,
        "error": distance(learner, teacher, 16, seed),
        "denoising": denoising_error(learner, 16, seed),
        "denoising_twice": denoising_error(learner, 32, seed),
        "teacher_denoising": denoising_error(teacher, 16, seed),
        "teacher_denoising_twice": denoising_error(teacher, 32, seed),
    }


@torch.no_grad()
def denoising_error(model: GridDenoiser, size: int, seed: int) -> float:
    """The mean squared error of the guess on new images."""
    return denoising(model, next(noisy_shapes(size, 64, 10_000 + seed)))[0].item()
