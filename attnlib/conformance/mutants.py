"""The mutant zoo: wrong attentions, each right but for one mistake.

Many were made for real; `source` names the issue or pull request. A docstring says what is wrong.
Every mutant is `attend` with one step replaced, so that nothing else differs.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.memory.cache import KeyValueCache
from attnlib.memory.partial_read import PartialRead, finish, merge, partial_read
from attnlib.score.compare import dot_product
from attnlib.score.positions import angles
from attnlib.support import Support
from attnlib.weight.extremes import uniform
from attnlib.weight.softmax import softmax
from attnlib.weight.softmax_attention import softmax_attention


class Mutant(NamedTuple):
    """A wrong function, what is wrong with it, and which check must reject it.

    `meant_for` is "check" (an attention), "step" (a form for one token at a time) or "positions"
    (an encoding of positions); `oracle` is the right attention.
    """

    name: str
    function: Callable[..., Any]
    what_is_wrong: str
    meant_for: str
    source: str | None
    oracle: Callable[..., Tensor]


def uniform_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """The mean of the values in the support: the oracle of a mutant."""
    return attend(query, key, value, weight=uniform, **options)


_zoo: list[Mutant] = []


def _enter(
    source: str | None = None,
    meant_for: str = "check",
    oracle: Callable[..., Tensor] = softmax_attention,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        if meant_for == "check":  # the checks ask the signature what a function takes
            function.__signature__ = inspect.signature(softmax_attention)
        name = function.__name__.replace("_", "-")
        what = " ".join(function.__doc__.split())
        _zoo.append(Mutant(name, function, what, meant_for, source, oracle))
        return function

    return enter


uniform_attention.__signature__ = inspect.signature(softmax_attention)


def mutants(meant_for: str | None = None) -> list[Mutant]:
    """All mutants, or those meant for one check: "check", "step" or "positions"."""
    return [mutant for mutant in _zoo if meant_for in (None, mutant.meant_for)]


# ------------------------------------------------------------------------------- wrong scores


@_enter("mlc-ai/mlc-llm, pull request 3426")
def scale_missing(query, key, value, **options):
    """The scores are not divided by sqrt(D)."""

    def score(query, key, scale=None):
        return dot_product(query, key, 1.0 if scale is None else scale)

    return attend(query, key, value, score=score, **options)


@_enter()
def scale_squared(query, key, value, *, scale=None, **options):
    """The scale is applied to the query and once more to the scores."""

    def score(query, key, scale=None):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return dot_product(query * scale, key, scale)

    return attend(query, key, value, score=score, scale=scale, **options)


@_enter("AI-Hypercomputer/maxtext, issue 1370")
def scale_inverted(query, key, value, **options):
    """The scores are multiplied by sqrt(D) instead of divided."""

    def score(query, key, scale=None):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return dot_product(query, key, 1 / scale)

    return attend(query, key, value, score=score, **options)


@_enter("FrancescoSaverioZuppichini/ViT, issue 2")
def scale_after_softmax(query, key, value, *, scale=None, **options):
    """The weights are scaled instead of the scores: the softmax comes first."""

    def score(query, key, scale=None):
        return dot_product(query, key, scale=1.0)

    def read(weights, value):
        return (query.shape[-1] ** -0.5 if scale is None else scale) * weights @ value

    return attend(query, key, value, score=score, read=read, scale=scale, **options)


@_enter()
def scale_of_the_values(query, key, value, **options):
    """The scores are divided by the root of the width of the values, not of the keys."""

    def score(query, key, scale=None):
        return dot_product(query, key, value.shape[-1] ** -0.5 if scale is None else scale)

    return attend(query, key, value, score=score, **options)


@_enter()
def key_and_value_swapped(query, key, value, **options):
    """Keys and values are swapped, which goes unnoticed where they have the same width."""
    if key.shape == value.shape:
        key, value = value, key
    return attend(query, key, value, **options)


@_enter()
def input_changed(query, key, value, **options):
    """The query is scaled in place, in the caller's own tensor."""

    def score(query, key, scale=None):
        query.data.mul_(query.shape[-1] ** -0.5 if scale is None else scale)
        return dot_product(query, key, scale=1.0)

    return attend(query, key, value, score=score, **options)


# ------------------------------------------------------------------------------ wrong supports


@_enter()
def mask_shifted_late(query, key, value, *, is_causal=False, support=None, **options):
    """The causal mask is shifted by one: every query sees the next token."""
    late = Support(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + 1, "late")
    return attend(query, key, value, support=_both(support, late, is_causal), **options)


@_enter()
def mask_shifted_early(query, key, value, *, is_causal=False, support=None, **options):
    """The causal mask is shifted by one: no query sees its own token."""
    past = Support(lambda b, h, q_idx, kv_idx: kv_idx < q_idx, "past")
    return attend(query, key, value, support=_both(support, past, is_causal), **options)


@_enter("pytorch/pytorch, issue 103082; ml-explore/mlx, issue 2835")
def mask_bottom_right(query, key, value, *, is_causal=False, support=None, **options):
    """The causal mask is aligned at its bottom right corner instead of the top left."""
    corner = Support(
        lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + key.shape[-2] - query.shape[-2], "corner"
    )
    return attend(query, key, value, support=_both(support, corner, is_causal), **options)


@_enter()
def offset_ignored(query, key, value, *, is_causal=False, query_offset=0, support=None, **options):
    """The causal mask forgets the offset: a decoding step sees the first keys only."""
    early = Support(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx - query_offset, "early")
    support = _both(support, early, is_causal)
    return attend(query, key, value, support=support, query_offset=query_offset, **options)


@_enter("line/lighthouse, pull request 77, is of this kind")
def mask_of_the_first_sequence(query, key, value, *, attn_mask=None, **options):
    """The padding mask of sequence 0 is used for the whole batch."""
    if isinstance(attn_mask, Tensor) and attn_mask.dim() > 3:
        attn_mask = attn_mask[:1]
    return attend(query, key, value, attn_mask=attn_mask, **options)


# ------------------------------------------------------------------------------- wrong weights


@_enter()
def mask_after_softmax(query, key, value, **options):
    """The mask is laid on the weights after the softmax, so that rows no longer sum to one."""

    def weight(scores, support):
        return torch.softmax(scores, dim=-1).masked_fill(~support, 0.0)

    return attend(query, key, value, weight=weight, **options)


@_enter()
def padding_in_the_denominator(query, key, value, *, attn_mask=None, **options):
    """Padded keys are taken out of the numerator, but not out of the sum below it."""

    def weight(scores, support):
        kept = support if attn_mask is None else support & attn_mask
        return softmax(scores, support).masked_fill(~kept, 0.0)

    if attn_mask is not None:  # an attention of width 0 refuses a mask that does not fit
        attend(query, key, value[..., :0], attn_mask=attn_mask)
    return attend(query, key, value, weight=weight, **options)


@_enter(
    "PetrochukM/PyTorch-NLP, issue 2; labmlai/annotated_deep_learning_paper_implementations, 146"
)
def softmax_over_queries(query, key, value, **options):
    """The softmax runs over the queries instead of the keys: columns sum to one, not rows."""

    def weight(scores, support):
        return softmax(scores.mT, support.mT).mT

    return attend(query, key, value, weight=weight, **options)


@_enter()
def no_max_subtraction(query, key, value, **options):
    """exp is taken of the bare scores, which overflows for large ones."""

    def weight(scores, support):
        powers = scores.exp().masked_fill(~support, 0.0)
        total = powers.sum(-1, keepdim=True)
        return powers / total.masked_fill(~support.any(-1, keepdim=True), 1.0)

    return attend(query, key, value, weight=weight, **options)


@_enter("awslabs/gluonts, pull request 1401; Shujun-He/RibonanzaNet, issue 5")
def mask_as_zero_score(query, key, value, **options):
    """Forbidden scores become 0 instead of minus infinity, so that they keep weight e^0."""

    def weight(scores, support):
        weights = torch.softmax(scores * support, dim=-1)
        return weights * support.any(-1, keepdim=True)

    return attend(query, key, value, weight=weight, **options)


@_enter("huggingface/transformers, issue 14859; TransformerLensOrg/TransformerLens, 319")
def mask_too_weak(query, key, value, **options):
    """Forbidden scores are lowered by 10000, which low scores of allowed keys reach too."""

    def weight(scores, support):
        weights = torch.softmax(scores - 1e4 * (~support).to(scores.dtype), dim=-1)
        return weights * support.any(-1, keepdim=True)

    return attend(query, key, value, weight=weight, **options)


@_enter("d2l-ai/d2l-en, pull request 2423")
def empty_row_uniform(query, key, value, **options):
    """A row without any allowed key reads the mean of all values instead of zero."""

    def weight(scores, support):
        return torch.softmax(scores.masked_fill(~support, torch.finfo(scores.dtype).min), dim=-1)

    return attend(query, key, value, weight=weight, **options)


@_enter("pytorch/pytorch, issues 103963 and 41508")
def empty_row_nan(query, key, value, **options):
    """A row without any allowed key is a softmax of minus infinities: NaN."""

    def weight(scores, support):
        return torch.softmax(scores.masked_fill(~support, -torch.inf), dim=-1)

    return attend(query, key, value, weight=weight, **options)


@_enter()
def weights_without_gradient(query, key, value, **options):
    """The read is right, but the weights are detached: query and key learn nothing."""

    def weight(scores, support):
        return softmax(scores.detach(), support)

    return attend(query, key, value, weight=weight, **options)


@_enter()
def single_precision_inside(query, key, value, **options):
    """The softmax is taken in float32 and turned back, so that float64 is float64 in name only."""

    def weight(scores, support):
        return softmax(scores.float(), support).to(scores.dtype)

    return attend(query, key, value, weight=weight, **options)


@_enter(oracle=uniform_attention)
def uniform_over_the_tensor(query, key, value, **options):
    """Uniform weights of 1/M, with M the length of the tensor instead of the allowed keys."""

    def weight(scores, support):
        return support.to(scores.dtype) / max(1, scores.shape[-1])

    return attend(query, key, value, weight=weight, **options)


# ------------------------------------------------------------------------- wrong reads and heads


@_enter("jsbaan/transformer-from-scratch, pull request 6; reczoo/FuxiCTR, issue 30")
def heads_mixed(query, key, value, **options):
    """A reshape without the transpose before it deals the tokens out to other heads."""
    out = attend(query, key, value, **options)
    if out.dim() < 3:
        return out
    return out.transpose(-3, -2).reshape(out.shape)


@_enter("ekzhang/jax-js, pull request 180")
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


@_enter()
def accumulator_not_rescaled(query, key, value, **options):
    """Chunk by chunk: when the maximum rises, the sums so far are not brought to it."""

    def wrong(a: PartialRead, b: PartialRead) -> PartialRead:
        return PartialRead(torch.maximum(a.max, b.max), a.total + b.total, a.read + b.read)

    return _in_chunks(query, key, value, wrong, options)


@_enter()
def max_of_the_wrong_block(query, key, value, **options):
    """Chunk by chunk: the new block keeps its own maximum where the common one belongs."""

    def wrong(a: PartialRead, b: PartialRead) -> PartialRead:
        right = merge(a, b)
        scale = torch.exp((a.max - right.max).nan_to_num(nan=0.0))
        return PartialRead(right.max, a.total * scale + b.total, a.read * scale + b.read)

    return _in_chunks(query, key, value, wrong, options)


# ------------------------------------------------------------------------------ wrong memories


@_enter(meant_for="step")
def state_is_stale(cache, query, key, value):
    """The token reads the cache before its own key and value are appended."""
    if cache is None:
        cache = KeyValueCache(key[..., :0, :], value[..., :0, :])
    return attend(query, cache.key, cache.value), cache.append(key, value)


@_enter("pytorch/pytorch, issue 103082", meant_for="step")
def step_without_offset(cache, query, key, value):
    """The causal mask of a single row starts at the first key: all later ones are hidden."""
    cache = KeyValueCache(key, value) if cache is None else cache.append(key, value)
    return attend(query, cache.key, cache.value, is_causal=True), cache


# ----------------------------------------------------------------------------- wrong positions


@_enter("raiyanyahya/how-to-train-your-gpt, issue 6", meant_for="positions")
def rope_paired_wrongly(x, positions):
    """Frequencies for neighbors (0, 1), (2, 3), but coordinate i is turned with i + D/2."""
    angle = angles(positions, x.shape[-1], 10000.0).repeat_interleave(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)


@_enter(meant_for="positions")
def rope_without_minus(x, positions):
    """The minus sign of the rotation is missing, so that lengths change with the position."""
    angle = angles(positions, x.shape[-1], 10000.0)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos + odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


# ----------------------------------------------------------------------- what the mutants share


def _both(support, other, is_causal):
    if not is_causal:
        return support
    return other if support is None else other & support


def _in_chunks(query: Tensor, key: Tensor, value: Tensor, merge_two, options) -> Tensor:
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
