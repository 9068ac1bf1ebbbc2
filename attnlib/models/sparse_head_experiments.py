"""Runs of chapter 6.1: a few dense heads against many sparse ones that cost as much."""

import torch
from torch import nn

from attnlib.choices import check_choice
from attnlib.models.language import DecoderLM
from attnlib.models.mixture_of_sparse_heads import (
    DenseAndSparseHeads,
    MixtureOfSparseHeads,
    StridedHeads,
    operations_of_dense_head,
    operations_of_sparse_head,
)
from attnlib.models.replaced import with_attention
from attnlib.models.unequal_heads import UnequalHeadsAttention
from attnlib.tasks.grammar import Grammar, best_loss
from attnlib.training import evaluate, train

HELD_OUT = 10_000
"""The seed of what is measured on; no training draws from it."""

LENGTH, WIDTH, HEAD_WIDTH, LAYERS, STEPS = 64, 64, 8, 2, 300
DENSE, KEPT, TOP_K = 4, 1, 8
"""Dense heads of the budget, those that the hybrid keeps, and the tokens that a sparse head takes:
an eighth of the sequence."""


def sparse_heads() -> int:
    """How many sparse heads cost as much as the dense heads that the hybrid gives up."""
    freed = (DENSE - KEPT) * operations_of_dense_head(LENGTH, WIDTH, HEAD_WIDTH)
    return freed // operations_of_sparse_head(LENGTH, WIDTH, HEAD_WIDTH, TOP_K)


def dense_part(heads: int) -> nn.Module:
    """Dense causal heads of the width that all heads here have."""
    return UnequalHeadsAttention(
        WIDTH,
        heads,
        key_heads=heads,
        value_heads=heads,
        key_width=HEAD_WIDTH,
        value_width=HEAD_WIDTH,
        is_causal=True,
    )


def layer_of(heads: str) -> nn.Module:
    """One attention layer of this kind."""
    if heads == "dense":
        return dense_part(DENSE)
    if heads == "kept alone":
        return dense_part(KEPT)
    kind = MixtureOfSparseHeads if heads == "chosen" else StridedHeads
    sparse = kind(WIDTH, sparse_heads(), top_k=TOP_K, head_width=HEAD_WIDTH, is_causal=True)
    return DenseAndSparseHeads(dense_part(KEPT), sparse)


def operations_of(heads: str) -> int:
    """Operations of one attention layer of this kind on one sequence, forward."""
    dense = operations_of_dense_head(LENGTH, WIDTH, HEAD_WIDTH)
    if heads == "dense":
        return DENSE * dense
    if heads == "kept alone":
        return KEPT * dense
    sparse = operations_of_sparse_head(LENGTH, WIDTH, HEAD_WIDTH, TOP_K)
    return KEPT * dense + sparse_heads() * sparse


def cached_keys(heads: str) -> int:
    """Keys (and as many values) that one layer keeps of a sequence, all heads together."""
    if heads == "dense":
        return DENSE * LENGTH
    if heads == "kept alone":
        return KEPT * LENGTH
    return KEPT * LENGTH + sparse_heads() * TOP_K


def run_sparse_heads(*, heads: str, seed: int) -> dict:
    """The loss of a small language model on sentences of a grammar, with such heads in its layers.

    `heads` is "dense" (4 dense heads), "chosen" (1 dense head and as many sparse ones, each
    choosing 8 of 64 tokens, as the operations of the other 3 pay), "strided" (the same heads
    with places at equal distances) or "kept alone" (the 1 dense head). Learned positions, two
    layers of width 64, 300 steps. Values: excess, the loss above the best possible (nats a word);
    operations and cached keys of one layer.
    """
    check_choice("heads", heads, ("dense", "chosen", "strided", "kept alone"))
    task = Grammar(length=LENGTH)
    model = DecoderLM(
        task.vocabulary,
        width=WIDTH,
        heads=DENSE,
        layers=LAYERS,
        position="learned",
        max_length=LENGTH,
        seed=seed,
    )
    model = with_attention(model, lambda: layer_of(heads), seed=seed)
    train(model, task.batches(16, seed), steps=STEPS, seed=seed, progress=False)
    generator = torch.Generator().manual_seed(HELD_OUT)
    tests = [task.batch(64, generator) for _ in range(4)]
    best = sum(map(best_loss, tests)) / len(tests)
    return {
        "excess": evaluate(model, tests, count=len(tests)).loss - best,
        "operations": operations_of(heads),
        "cached keys": cached_keys(heads),
    }
