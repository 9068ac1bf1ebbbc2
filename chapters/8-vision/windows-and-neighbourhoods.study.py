"""What near buys: few training images, borders of textures, shapes of windows, groups."""

import copy
from functools import cache, partial

import torch

from attnlib.models.disc_student import (
    denoising,
    denoising_error,
    distill,
    distillation,
    noisy_shapes,
    trained_teacher,
)
from attnlib.models.dual_attention import learn_tiles
from attnlib.models.gated_positional import nonlocality
from attnlib.models.grid_vision import GridVision, SupportedAttention, gates, grid_layers
from attnlib.models.pose_decoder import learn_poses
from attnlib.models.shape_experiments import denoise
from attnlib.patterns.grid import halo as halo_support
from attnlib.study import grid
from attnlib.tasks.digits import Digits
from attnlib.tasks.shapes import ColoredShapes
from attnlib.tasks.textures import TextureBorders
from attnlib.training import evaluate, train

# Few images. Every model: 64 tokens on a grid of 8 x 8 (digits: a pixel each; shapes: 2 x 2
# pixels), 2 layers of width 36 with 9 heads, learned places added to the tokens, mean of all tokens
# read at the end, 300 steps of 16 images whatever their number. Columns differ in the attention
# layer alone: what it sees, or that it is gated. None of the four has a relative bias.
GRID, WIDTH, HEADS, LAYERS, STEPS, BATCH = (8, 8), 36, 9, 2, 300, 16
LAYOUTS = ["plain", "gated", "windows", "neighborhood"]
DATA = ["digits", "shapes"]
# The digits have 1437 images to train on; "all" is these, and 1437 shapes.
IMAGES = {"100": 100, "300": 300, "all": 1437}
# Learning rates were set after a trial of seed 0 on digits, before any cell below was run. "rate"
# checks them for the two that are compared: trained on 300 images, judged on 300 that are neither
# trained nor tested on.
RATES = (3e-3, 1e-2)
RATE = {"plain": 3e-3, "gated": 1e-2, "windows": 3e-3, "neighborhood": 3e-3}
# Borders. 12 x 12 tokens, 2 layers of width 32 with 4 heads and a relative bias, a label for every
# token, 200 steps of 8 new images. A block of 2 with a halo of 1 has the 16 keys of a block of 4; a
# block of 12 is the whole image.
# The other experiments are described where they are defined. Their controls: keys drawn at random
# ("scattered"), images without stripes ("patches"), groups drawn at random ("shuffled"), a question
# that the own tile answers ("texture").
SEEDS = range(3)
CELLS = [
    *grid(experiment=["borders"], figure=["shapes"], block=[2], halo=[0, 1, 2]),
    *grid(experiment=["borders"], figure=["shapes"], block=[4, 12], halo=[0]),
    # The control: what can be known of a token lies in its own block of 2.
    *grid(experiment=["borders"], figure=["blocks"], block=[2], halo=[0, 1]),
    *grid(experiment=["few images"], data=DATA, images=["100", "all"], layer=LAYOUTS),
    # The control: one permutation of all tokens, the same for every image. Nothing is near.
    *grid(
        experiment=["few images"],
        data=["shapes"],
        images=["100", "all"],
        layer=["plain", "gated", "neighborhood"],
        shuffled=[True],
    ),
    *grid(experiment=["few images"], data=DATA, images=["300"], layer=LAYOUTS),
    # The gate without its convolutional start.
    *grid(
        experiment=["few images"], data=["shapes"], images=["100"], layer=["gated, random start"]
    ),
    *grid(experiment=["rate"], data=["shapes"], layer=["plain", "gated"], rate=list(RATES)),
    *grid(experiment=["disc"], student=["disc", "scattered", "linear"]),
    *grid(experiment=["poses"], attention=["full", "grouped", "shuffled"]),
    *grid(
        experiment=["stripes"],
        window=["square", "rectangle"],
        images=["stripes", "patches"],
    ),
    *grid(
        experiment=["dual"],
        layers=["windows", "channels", "both"],
        asked=["majority", "texture"],
    ),
    # Are 300 steps too few? Chosen when the cells of "100" and "all" had been seen, before any of
    # these was run: two pairs once more with three times the steps.
    *grid(
        experiment=["few images"],
        data=["digits"],
        images=["100"],
        layer=["plain", "gated"],
        steps=[3 * STEPS],
    ),
    *grid(
        experiment=["few images"],
        data=["shapes"],
        images=["all"],
        layer=["plain", "gated"],
        steps=[3 * STEPS],
    ),
    # The cells below were chosen when all above had been seen, before any of them was run.
    # Is it the layer or the learning rate? The two columns whose rates differ, each at the other's.
    *grid(
        experiment=["few images"],
        data=["shapes"],
        images=["all"],
        layer=["plain"],
        steps=[STEPS, 3 * STEPS],
        rate=[RATE["gated"]],
    ),
    # Are the students of "disc" better than their teacher because they were trained for longer?
    *grid(experiment=["teacher"], learns=["all", "attention"]),
    # A halo of 1 around 2 and a block of 4 have as many keys, but through two layers the halo
    # reaches more places. With one layer both reach what they see.
    *grid(experiment=["borders"], figure=["shapes"], block=[2], halo=[1], layers=[1]),
    *grid(experiment=["borders"], figure=["shapes"], block=[4], halo=[0], layers=[1]),
    *grid(
        experiment=["few images"],
        data=["shapes"],
        images=["all"],
        layer=["gated"],
        steps=[STEPS, 3 * STEPS],
        rate=[RATE["plain"]],
    ),
]
ELSEWHERE = {
    "disc": lambda student, seed: distill(student=student, seed=seed),
    "poses": lambda attention, seed: learn_poses(groups=attention, seed=seed),
    "stripes": lambda window, images, seed: denoise(window, images, seed),
    "dual": lambda layers, asked, seed: learn_tiles(layers=layers, asked=asked, seed=seed),
}


def run(cell, seed):
    """One cell with one seed."""
    here = {
        "few images": few_images,
        "rate": learning_rate,
        "borders": borders,
        "teacher": teacher_trained_on,
    }
    return (here | ELSEWHERE)[cell.pop("experiment")](**cell, seed=seed)


def few_images(
    *,
    data: str,
    images: str,
    layer: str,
    seed: int,
    shuffled: bool = False,
    steps: int = STEPS,
    rate: float | None = None,
) -> dict:
    """Accuracy on new images; how far each layer reads at the start and at the end; gates.

    Without a `rate` the layer has its own of RATE.
    """
    trained_on, _ = training_images(data, IMAGES[images], seed)
    tested_on = test_images(data)
    if shuffled:
        trained_on, tested_on = (shuffle_tokens(batch, data) for batch in (trained_on, tested_on))
    model = classifier(data, layer, seed)
    values = {f"{name}_start": value for name, value in reading(model, tested_on).items()}
    history = fit(model, trained_on, rate or RATE[layer.split(",")[0]], seed, steps)
    values |= reading(model, tested_on)
    return values | {
        "accuracy": evaluate(model, [tested_on]).accuracy,
        "training_loss": float(history.loss[-20:].mean()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def learning_rate(*, data: str, layer: str, rate: float, seed: int) -> dict:
    """Accuracy on images that are kept for the choice of the rate, after training on 300 others."""
    trained_on, kept = training_images(data, 300, seed)
    model = classifier(data, layer, seed)
    fit(model, trained_on, rate, seed)
    return {"validation": evaluate(model, [kept]).accuracy}


def borders(*, figure: str, block: int, halo: int, seed: int, layers: int = 2) -> dict:
    """Accuracy of naming each token figure or ground."""
    cells = (12, 12)
    task = TextureBorders(cells=12, figure=figure, block=2)
    support = halo_support(cells, block, halo)
    make = partial(SupportedAttention, 32, 4, grid=cells, support=support, relative=True)
    model = GridVision(cells, 2, 2, [make] * layers, width=32, readout="token", seed=seed)
    batches = task.batches(8, seed)
    train(model, batches, steps=200, learning_rate=3e-3, seed=seed, progress=False)
    return {
        "accuracy": evaluate(model, [task.batch(400, 10_000)]).accuracy,
        "chance": task.chance,
        "keys": (block + 2 * halo) ** 2,
    }


def teacher_trained_on(*, learns: str, seed: int) -> dict:
    """The teacher of "disc" after 150 further steps on the images of its students.

    all: every parameter learns, on the teacher's own loss. attention: as a student, but with the
    full attention that it had; only the attention layers learn, on the students' loss.
    """
    teacher = trained_teacher(seed)
    longer = copy.deepcopy(teacher).requires_grad_(learns == "all")
    longer.attentions.requires_grad_(True)
    objective = denoising if learns == "all" else distillation(teacher)
    train(longer, noisy_shapes(16, 16, 1000 + seed), steps=150, objective=objective, progress=False)
    return {
        "denoising": denoising_error(longer, 16, seed),
        "denoising_twice": denoising_error(longer, 32, seed),
        "teacher_denoising": denoising_error(teacher, 16, seed),
        "teacher_denoising_twice": denoising_error(teacher, 32, seed),
    }


def classifier(data: str, layer: str, seed: int) -> GridVision:
    """An untrained model."""
    layout, _, start = layer.partition(", ")
    makers = grid_layers(layout, LAYERS, width=WIDTH, heads=HEADS, grid=GRID)
    if start:
        makers = [partial(make, convolutional=False) for make in makers]
    patch, classes, channels = (1, 10, 1) if data == "digits" else (2, 4, 3)
    return GridVision(GRID, patch, classes, makers, channels=channels, width=WIDTH, seed=seed)


def fit(model: GridVision, images: tuple, rate: float, seed: int, steps: int = STEPS):
    """Steps of images drawn with repetition, the same ones for all models of a seed."""
    generator = torch.Generator().manual_seed(seed)

    def batches():
        while True:
            rows = torch.randint(len(images[1]), (BATCH,), generator=generator)
            yield images[0][rows], images[1][rows]

    return train(model, batches(), steps=steps, learning_rate=rate, seed=seed, progress=False)


@torch.no_grad()
def reading(model: GridVision, images: tuple) -> dict:
    """Mean distance that each layer reads over (in tokens), and its mean share of place."""
    _, weights = model(images[0][:64], return_weights=True)
    values = {
        f"distance_{number}": float(nonlocality(layer, GRID).mean())
        for number, layer in enumerate(weights, 1)
    }
    if hasattr(model.blocks[0].attention, "gate"):
        shares = gates(model).mean(-1)
        values |= {f"gate_{number}": float(share) for number, share in enumerate(shares, 1)}
    return values


def training_images(data: str, count: int, seed: int) -> tuple[tuple, tuple]:
    """`count` images to train on, and up to 300 others to choose by."""
    batch = Digits("train").all() if data == "digits" else shapes().batch(1737, 100 + seed)
    order = torch.randperm(len(batch.labels), generator=torch.Generator().manual_seed(seed))
    rows, others = order[:count], order[-300:]
    return (batch.images[rows], batch.labels[rows]), (batch.images[others], batch.labels[others])


@cache
def test_images(data: str) -> tuple:
    """Images that no model is trained on: 360 digits, 600 shapes."""
    batch = Digits("test").all() if data == "digits" else shapes().batch(600, 10_000)
    return batch.images, batch.labels


def shapes() -> ColoredShapes:
    """One shape in 16 x 16 pixels with a little noise."""
    return ColoredShapes(size=16, noise=0.1)


def shuffle_tokens(images: tuple, data: str) -> tuple:
    """The same permutation of the tokens in every image."""
    patch = 1 if data == "digits" else 2
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    pieces = images[0].unflatten(-1, (8, patch)).unflatten(-3, (8, patch)).movedim(-2, -3)
    shuffled = pieces.flatten(-4, -3)[..., order, :, :].unflatten(-3, (8, 8))
    return shuffled.movedim(-3, -2).flatten(-4, -3).flatten(-2), images[1]


if __name__ == "__main__":
    print(f"{len(CELLS)} cells, {len(CELLS) * len(SEEDS)} runs")
