"""Who still finds a needle in a text sixteen times as long, if all may read as few keys?"""

from functools import cache, partial

import torch
from torch import nn

from attnlib.models.content_routing_experiments import (
    run_group_accuracy,
    run_group_mass,
    run_kept_mass,
    run_trained_recall,
)
from attnlib.models.landmark_language import LandmarkLM
from attnlib.models.language import DecoderLM
from attnlib.models.local_and_routed import LocalAndRoutedHeads
from attnlib.models.span_experiments import run_all_or_here, run_spans
from attnlib.models.sparse_head_experiments import run_sparse_heads
from attnlib.read.mixture_of_blocks import dense_moba_attention
from attnlib.study import grid
from attnlib.support import window
from attnlib.tasks.needle import NeedleRetrieval
from attnlib.training import evaluate, train
from attnlib.weight.softmax_attention import softmax_attention

TASK = NeedleRetrieval(length=64)
TIMES = (1, 2, 4, 8, 16)
BLOCK, TAKEN = 8, 3
KEYS = BLOCK * TAKEN
SIZES = {"width": 64, "heads": 2, "layers": 2}
STEPS = 400
TEST_SEED = 10_000


class Blocks(nn.Module):
    """MoBA whose number of blocks can be changed after training; None: all blocks."""

    def __init__(self):
        super().__init__()
        self.top_k = TAKEN

    def forward(self, query, key, value, *, is_causal=True):
        """The dense form: the same numbers, and quick at these lengths."""
        blocks = -(-key.shape[-2] // BLOCK)
        top_k = blocks if self.top_k is None else min(self.top_k, blocks)
        return dense_moba_attention(
            query, key, value, block_size=BLOCK, top_k=top_k, is_causal=is_causal
        )


def routed() -> LocalAndRoutedHeads:
    """One head reads the last keys, the other those of its cluster."""
    return LocalAndRoutedHeads(
        SIZES["width"] // SIZES["heads"],
        heads=SIZES["heads"],
        local_heads=1,
        window=KEYS,
        groups=4,
        top_k=KEYS,
        decay=0.95,
    )


OPERATORS = {
    "full": lambda: softmax_attention,
    "window": lambda: partial(softmax_attention, support=window(KEYS)),
    "moba": Blocks,
    "routing": routed,
}


@cache
def trained(form: str, seed: int, steps: int = STEPS) -> nn.Module:
    """A two-layer decoder without positions, trained on texts of 64 tokens."""
    if form == "landmark":
        model = LandmarkLM(TASK.vocabulary, block_size=BLOCK, seed=seed, **SIZES)
    else:
        model = DecoderLM(
            TASK.vocabulary, operator=OPERATORS[form](), position="none", seed=seed, **SIZES
        )
    train(model, TASK.batches(32, seed), steps=steps, seed=seed, progress=False)
    return model.eval()


def tested(model: nn.Module, times: int):
    """Loss and accuracy on texts so many times as long as those of the training."""
    batches = TASK.at(TASK.length * times).batches(16, TEST_SEED)
    return evaluate(model, batches, count=16 if times <= 4 else 8)


@torch.no_grad()
def keys_read(model: nn.Module, times: int) -> float:
    """How many keys with weight a question has, in the mean of layers, heads and questions."""
    tokens = TASK.at(TASK.length * times).batch(2, TEST_SEED).tokens
    length = tokens.shape[1]
    decoder = getattr(model, "decoder", model)
    if decoder is not model:
        marks = tokens.new_full((2, -(-length // BLOCK)), TASK.vocabulary)
        tokens = torch.cat((tokens, marks), dim=1)
    _, weights = decoder(tokens, return_weights=True)
    asked = weights[..., length - TASK.questions : length, :]
    return (asked > 0).sum(-1).float().mean().item()


def needle(form: str, seed: int) -> dict:
    """Accuracy and keys at each length; "landmark" retrieves, "landmark, all" reads all blocks."""
    model = trained(form.removesuffix(", all"), seed)
    if form.startswith("landmark"):
        model.retrieve(None if form.endswith("all") else TAKEN - 1)
    values = {"steps": STEPS, "parameters": sum(x.numel() for x in model.parameters())}
    for times in TIMES:
        values[f"accuracy_{times}"] = tested(model, times).accuracy
        values[f"keys_{times}"] = keys_read(model, times)
    return values


def taken(top_k: int | str, seed: int) -> dict:
    """A model that was trained with three blocks, tested with others at four times the length."""
    model = trained("moba", seed)
    read_blocks(model, None if top_k == "all" else top_k)
    values = {"accuracy": tested(model, 4).accuracy, "keys": keys_read(model, 4)}
    read_blocks(model, TAKEN)
    return values


def read_blocks(model: nn.Module, top_k: int | None) -> None:
    """Change how many blocks every layer reads."""
    for block in model.blocks:
        block.attention.operator.top_k = top_k


def switch(trained_with: str, tested_with: str, seed: int) -> dict:
    """The weights of one model under the attention of another, at the training length."""
    model = DecoderLM(
        TASK.vocabulary, operator=OPERATORS[tested_with](), position="none", **SIZES
    ).eval()
    model.load_state_dict(trained(trained_with, seed).state_dict())
    return tested(model, 1)._asdict()


FORMS = ["full", "window", "moba", "landmark", "landmark, all", "routing"]
DATA = ["interleaved", "contiguous"]
CELLS = [
    *grid(experiment=["needle"], form=FORMS),
    *grid(experiment=["taken"], top_k=[1, 2, 3, 4, 8, 16, "all"]),
    *grid(experiment=["switch"], trained=["full", "moba"], tested=["full", "moba", "window"]),
    *grid(experiment=["mass"], support=["full", "routed", "window", "same kind"], data=DATA),
    *grid(experiment=["trained with"], support=["full", "routed", "window"], data=DATA[:1]),
    *grid(experiment=["groups"], support=["routed", "random", "blocks"], data=DATA),
    *grid(experiment=["groups accuracy"], support=["full", "routed", "random"], data=DATA[:1]),
    *grid(experiment=["sparse heads"], heads=["dense", "chosen", "strided", "kept alone"]),
    *grid(experiment=["spans"], spans=["full", "uniform", "mixed", "exchanged"]),
    *grid(experiment=["spans"], spans=["mixed by margin", "exchanged by margin"]),
    *grid(experiment=["all or here"], form=["learned", "here", "everywhere", "free"], window=[8]),
    *grid(experiment=["all or here"], form=["learned"], window=[4, 32]),
]
OTHERS = {
    "mass": run_kept_mass,
    "trained with": run_trained_recall,
    "groups": run_group_mass,
    "groups accuracy": run_group_accuracy,
    "sparse heads": run_sparse_heads,
    "spans": run_spans,
    "all or here": run_all_or_here,
}
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The values of one experiment with one seed."""
    experiment = cell.pop("experiment")
    if experiment == "needle":
        return needle(cell["form"], seed)
    if experiment == "taken":
        return taken(cell["top_k"], seed)
    if experiment == "switch":
        return switch(cell["trained"], cell["tested"], seed)
    return OTHERS[experiment](**cell, seed=seed)
