"""Wrong reads: heads dealt out wrongly, chunks put together wrongly."""

import functools

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.conformance.mutants.register import mutant
from attnlib.memory.partial_read import PartialRead, finish, merge, partial_read
from attnlib.score.compare import dot_product


@mutant("jsbaan/transformer-from-scratch, pull request 6; reczoo/FuxiCTR, issue 30")
def heads_mixed(query, key, value, **options):
    """A reshape without the transpose before it deals the tokens out to other heads."""
    out = attend(query, key, value, **options)
    if out.dim() < 3:
        return out
    return out.transpose(-3, -2).reshape(out.shape)


@mutant("ekzhang/jax-js, pull request 180")
def key_heads_tiled(query, key, value, *, enable_gqa=False, **options):
    """Key heads are repeated as 0 1 0 1 instead of 0 0 1 1: query heads read the wrong group."""

    def tiled(x):
        if not enable_gqa or x.dim() < 3:
            return x
        heads, key_heads = x.shape[-3], key.shape[-3]
        return x[..., torch.arange(heads) % key_heads * (heads // key_heads), :, :]

    def score(query, key, scale=None):
        return dot_product(query, tiled(key), scale)

    def read(weights, value):
        return weights @ tiled(value)

    return attend(query, key, value, score=score, read=read, enable_gqa=enable_gqa, **options)


@mutant()
def accumulator_not_rescaled(query, key, value, **options):
    """Chunk by chunk: when the maximum rises, the sums so far are not brought to it."""

    def wrong(a: PartialRead, b: PartialRead) -> PartialRead:
        return PartialRead(torch.maximum(a.max, b.max), a.total + b.total, a.read + b.read)

    return in_chunks(query, key, value, wrong, options)


@mutant()
def max_of_the_wrong_block(query, key, value, **options):
    """Chunk by chunk: the new block keeps its own maximum where the common one belongs."""

    def wrong(a: PartialRead, b: PartialRead) -> PartialRead:
        right = merge(a, b)
        scale = torch.exp((a.max - right.max).nan_to_num(nan=0.0))
        return PartialRead(right.max, a.total * scale + b.total, a.read * scale + b.read)

    return in_chunks(query, key, value, wrong, options)


def in_chunks(query: Tensor, key: Tensor, value: Tensor, merge_two, options) -> Tensor:
    """`attend` with the weight and read steps done two keys at a time."""
    known = {}

    def weight(scores, support):
        known["support"] = support
        return scores

    def read(scores, value):
        width = scores.shape[-1]
        if width == 0:
            return scores.new_zeros(*scores.shape[:-1], value.shape[-1])
        parts = [
            partial_read(
                scores[..., start : start + 2],
                value[..., start : start + 2, :],
                known["support"][..., start : start + 2],
            )
            for start in range(0, width, 2)
        ]
        return finish(functools.reduce(merge_two, parts))

    return attend(query, key, value, weight=weight, read=read, **options)
