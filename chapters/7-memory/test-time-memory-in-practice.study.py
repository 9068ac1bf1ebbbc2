"""What a read of earlier layers adds to a window; how many learnt tokens stand for a subject."""

import itertools
from functools import cache

import torch
from torch import nn

from attnlib.models.language import DecoderLM
from attnlib.models.layer_reweaving import ReweavingLM
from attnlib.models.persistent_tokens import (
    PersistentTokens,
    PictureReader,
    answer_in_words,
    answer_with_tokens,
)
from attnlib.models.replaced import with_attention
from attnlib.models.titans_layers import PersistentWindow
from attnlib.study import grid
from attnlib.tasks.streams import NearAndFarRecall
from attnlib.tasks.subjects import PictureQuestionTask
from attnlib.tasks.task import IGNORE
from attnlib.training import train

CELLS = [
    *grid(experiment=["reweaving"], read=["window", "window and layers"], steps=[40, 500]),
    *grid(experiment=["tokens"], learnt=[1, 2, 4, 8, 16]),
    *grid(experiment=["tokens"], said=[1, 2, 3]),
]
SEEDS = range(3)

WIDTH, WINDOW, ALLOWED = 64, 8, 110_000
TEST_SEED = 1000


def run(cell: dict, seed: int) -> dict:
    """Accuracies of one cell."""
    cell = dict(cell)
    if cell.pop("experiment") == "reweaving":
        return reweaving(seed=seed, **cell)
    return learnt_tokens(seed, cell["learnt"]) if "learnt" in cell else words(seed, cell["said"])


def reweaving(read: str, steps: int, seed: int) -> dict:
    """Accuracy of near questions, and of far ones at three distances; trained at the middle one."""
    task = NearAndFarRecall(far=6, near=6, keys=32, values=8)
    base = DecoderLM(task.vocabulary, width=WIDTH, layers=2, position="none", seed=seed)
    base = with_attention(base, lambda: PersistentWindow(WIDTH, 2, window=WINDOW), seed=seed)
    model = base if read == "window" else ReweavingLM(base, seed=seed)
    widen(base, ALLOWED - numbers_of(model), seed)
    train(model, task.batches(32, seed), steps=steps, seed=seed, progress=False)
    found = {"parameters": numbers_of(model)}
    for near in (2, 6, 10):
        longer = NearAndFarRecall(far=6, near=near, keys=32, values=8)
        batch = longer.batch(256, TEST_SEED)
        with torch.no_grad():
            right = (model(batch.tokens).argmax(-1) == batch.targets).double()
        asked = batch.targets != IGNORE
        found[f"far at {2 + 4 * near}"] = right[asked & longer.is_far].mean()
        if near == 6:
            found["near"] = right[asked & ~longer.is_far].mean()
    return found


def widen(model: DecoderLM, spare: int, seed: int) -> None:
    """Spend spare parameters on hidden units of the perceptrons, 2 width + 1 a unit."""
    units = spare // len(model.blocks) // (2 * WIDTH + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            hidden = block.perceptron[0].out_features + units
            block.perceptron = nn.Sequential(
                nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH)
            )


def numbers_of(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


@cache
def picture_reader(seed: int) -> PictureReader:
    """A reader that was trained on descriptions of three words, for any thing."""
    model = PictureReader(PictureQuestionTask(), seed=seed)
    batches = model.task.batches(128, seed)
    train(model, batches, steps=800, objective=answer_in_words, seed=seed, progress=False)
    return model


def subject_of(seed: int) -> PictureQuestionTask:
    """Questions about one thing, drawn from the seed."""
    generator = torch.Generator().manual_seed(TEST_SEED + seed)
    values = torch.randint(5, (3,), generator=generator).tolist()
    return PictureQuestionTask(subject=tuple(values))


def learnt_tokens(seed: int, count: int) -> dict:
    """Accuracy about a subject that is known by so many tokens, learnt from 64 questions."""
    task = subject_of(seed)
    tokens = PersistentTokens(picture_reader(seed), count, seed=seed)
    train(
        tokens,
        itertools.repeat(task.batch(64, seed)),
        steps=300,
        learning_rate=3e-2,
        warmup=5,
        objective=answer_with_tokens,
        seed=seed,
        progress=False,
    )
    batch = task.batch(2000, TEST_SEED)
    with torch.no_grad():
        return accuracies(tokens(batch.pictures, batch.asked), batch)


def words(seed: int, said: int) -> dict:
    """Accuracy about the same subject where its first so many words are said."""
    model, batch = picture_reader(seed), subject_of(seed).batch(2000, TEST_SEED)
    with torch.no_grad():
        described = model.words(batch.words)[:, :said]
        return accuracies(model(batch.pictures, described, batch.asked), batch)


def accuracies(logits, batch) -> dict:
    """Of "is it there?" and of questions for an attribute."""
    right = (logits.argmax(-1) == batch.targets).double()
    there = batch.asked == 0
    return {"recognized": right[there].mean(), "attributes": right[~there].mean()}
