"""Who still finds a needle in a text sixteen times as long, if all may read as few keys?"""

import copy
from functools import cache, partial

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from attnlib.memory.partial_read import PartialRead, finish
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
from attnlib.read.chosen_blocks import block_reads, chosen_pairs, highest_blocks, merged
from attnlib.read.landmark_attention import seen_through
from attnlib.read.mixture_of_blocks import dense_moba_attention, gate_scores
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


class PastBlocksBy(nn.Module):
    """Every query's own block and two past blocks by a rule, read as MoBA or as landmarks do.

    "best" is the form's own score, "nearest" the blocks just before, "random" a draw for each
    query of each head and layer.
    """

    def __init__(self, form: str, rule: str):
        super().__init__()
        self.form, self.rule = form, rule

    def forward(self, query, key, value, *, is_causal=True):
        """Landmarks stand behind the tokens, as in `LandmarkLM`."""
        tokens, place = key.shape[-2], torch.arange(query.shape[-2])
        if self.form == "landmark":
            tokens -= -(-tokens // (BLOCK + 1))
            ends = (place[tokens:] - tokens + 1) * BLOCK - 1
            place = torch.cat((place[:tokens], ends.clamp(max=tokens - 1)))
        key, landmark, value = key[..., :tokens, :], key[..., tokens:, :], value[..., :tokens, :]
        scores = (
            query @ landmark.mT
            if self.form == "landmark"
            else gate_scores(query, key, block_size=BLOCK)
        )
        own = place // BLOCK
        chosen, scale = self.blocks(scores, own), query.shape[-1] ** -0.5
        if self.form == "moba":
            seen = chosen_pairs(chosen, BLOCK, tokens) & (torch.arange(tokens) <= place[:, None])
            return scaled_dot_product_attention(query, key, value, attn_mask=seen)
        reads = block_reads(query, key, value, chosen, place, block_size=BLOCK, scale=scale)
        score = scale * scores.flatten(0, -2)[reads.row, reads.block]
        is_own = (own[reads.row % len(own)] == reads.block)[:, None]
        past = seen_through(score[:, None], reads.part)
        part = (torch.where(is_own, *pair) for pair in zip(reads.part, past, strict=True))
        read = finish(merged(reads._replace(part=PartialRead(*part)), query[..., 0].numel()))
        return read.view(*query.shape[:-1], value.shape[-1])

    def blocks(self, scores, own):
        """The own block and two before it: (*heads, N, blocks)."""
        number = torch.arange(scores.shape[-1])
        if self.rule == "nearest":
            scores = number.to(scores).expand_as(scores)
        elif self.rule == "random":
            scores = torch.rand_like(scores)
        past = scores.masked_fill(number >= own[:, None], -torch.inf)
        return highest_blocks(past, TAKEN - 1) | (number == own[:, None])


def past(form: str, rule: str, seed: int) -> dict:
    """The weights of a trained model, its past blocks taken by a rule; nothing is trained."""
    model = copy.deepcopy(trained(form, seed))
    for block in getattr(model, "decoder", model).blocks:
        block.attention.operator = PastBlocksBy(form, rule)
    values = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for times in (1, 4, 16):
            values[f"accuracy_{times}"] = tested(model, times).accuracy
            values[f"keys_{times}"] = keys_read(model, times)
    return values


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
    *grid(experiment=["past blocks"], form=["moba", "landmark"], rule=["nearest", "random"]),
    *grid(experiment=["switch"], trained=["full", "moba"], tested=["full", "moba", "window"]),
    *grid(experiment=["mass"], support=["full", "routed", "window", "same kind"], data=DATA),
    *grid(experiment=["mass"], support=["4 clusters", "16 clusters"], data=DATA[:1]),
    *grid(experiment=["trained with"], support=["full", "routed", "window"], data=DATA[:1]),
    *grid(experiment=["groups"], support=["routed", "random", "blocks"], data=DATA),
    *grid(experiment=["groups accuracy"], support=["start", "full"], data=DATA[:1]),
    *grid(experiment=["groups accuracy"], support=["routed", "random"], data=DATA[:1]),
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
    if experiment == "past blocks":
        return past(cell["form"], cell["rule"], seed)
    if experiment == "switch":
        return switch(cell["trained"], cell["tested"], seed)
    return OTHERS[experiment](**cell, seed=seed)
