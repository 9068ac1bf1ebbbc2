"""The puzzle of chapter 1.1: a property that exposes three real bugs."""

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.exercises.answers import call, require
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.read.chunked_softmax import chunked_softmax_attention


@checker("1.1.7")
def property_that_exposes_bugs(answer) -> str:
    """A function attention -> bool: True for right attentions, False for three that are wrong."""
    for name, attention in RIGHT_ATTENTIONS.items():
        verdict = _verdict(answer, attention)
        require(verdict, f"your property rejects a right attention: {name}")
    for name, attention in REAL_BUGS.items():
        verdict = _verdict(answer, attention)
        require(not verdict, f"your property accepts an attention with a bug: {name}")
    return "Two right attentions pass, three real bugs do not."


def _verdict(answer, attention) -> bool:
    def unnamed(query, key, value, attn_mask=None, is_causal=False):
        return attention(query, key, value, attn_mask=attn_mask, is_causal=is_causal)

    verdict = call(answer, unnamed)
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    require(isinstance(verdict, bool), f"return True or False, got {type(verdict).__name__}")
    return verdict


def _in_chunks(query, key, value, attn_mask=None, is_causal=False):
    return chunked_softmax_attention(
        query, key, value, attn_mask=attn_mask, is_causal=is_causal, chunk=2
    )


def _filled_with(query, key, value, attn_mask, is_causal, filling, aligned_at_the_end=False):
    """Attention whose mask is the number `filling` and whose softmax knows nothing of it."""
    queries, keys = query.shape[-2], key.shape[-2]
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    if is_causal:
        allowed = allowed.tril(keys - queries if aligned_at_the_end else 0)
    if attn_mask is not None:
        allowed = allowed & attn_mask
    scores = query @ key.mT / query.shape[-1] ** 0.5
    weights = torch.softmax(scores.masked_fill(~allowed, filling), -1)
    return weights, allowed.any(-1, keepdim=True)


def _nan_without_keys(query, key, value, attn_mask=None, is_causal=False):
    weights, _ = _filled_with(query, key, value, attn_mask, is_causal, -torch.inf)
    return weights @ value


def _causal_from_the_end(query, key, value, attn_mask=None, is_causal=False):
    weights, some = _filled_with(query, key, value, attn_mask, is_causal, -1e300, True)
    return weights * some @ value


def _mask_of_ten_thousand(query, key, value, attn_mask=None, is_causal=False):
    weights, some = _filled_with(query, key, value, attn_mask, is_causal, -1e4)
    return weights * some @ value


RIGHT_ATTENTIONS = {
    "the dense one": attend,
    "one that adds in another order (compare with a tolerance, not exactly)": _in_chunks,
}
# Bugs that were met in the open: pytorch issue 41508; flash-attention issues 282 and 951 (there a
# choice of convention, here a bug, because this book aligns at the top left); transformers issue
# 14859 and TransformerLens issue 318.
REAL_BUGS = {
    "it reads NaN where a query may see no key": _nan_without_keys,
    "with fewer queries than keys its causal mask is aligned bottom-right": _causal_from_the_end,
    "it masks with the number -1e4, and scores lower than that lose to it": _mask_of_ten_thousand,
}


@solution("1.1.7")
def one_key_reads_its_value(attention) -> bool:
    """One allowed key is read as it is, no allowed key is read as zero, whatever the scores."""
    key = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]], dtype=torch.float64)
    query, value = -1e4 * key[:, :3], key.clone()
    mask = torch.eye(3, 4, dtype=torch.bool)
    mask[2] = False
    masked = attention(query, key, value, attn_mask=mask)
    causal = attention(-query, key, value, is_causal=True)
    expected = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    return torch.allclose(masked[0, :, 0], expected) and torch.allclose(causal[0, 0], value[0, 0])


def _reads(attention, queries, keys, size=1.0, mask=None, is_causal=False):
    """What an attention reads, and what it should read, on one random example."""
    generator = torch.Generator().manual_seed(117)
    shapes = ((1, queries, 4), (1, keys, 4), (1, keys, 3))
    query, key, value = (torch.randn(s, generator=generator).double() for s in shapes)
    inputs = (size * query, key, value)
    options = {"attn_mask": mask, "is_causal": is_causal}
    return attention(*inputs, **options), attend(*inputs, **options)


@mutant("1.1.7", "rejects a right attention: the dense one")
def always_false(attention):
    return False


@mutant("1.1.7", "may see no key")
def only_the_shape(attention):
    came, right = _reads(attention, 3, 5)
    return came.shape == right.shape


@mutant("1.1.7", "with a tolerance")
def exactly_equal(attention):
    came, right = _reads(attention, 5, 7, is_causal=True)
    return torch.equal(came, right)


@mutant("1.1.7", "aligned bottom-right")
def only_as_many_queries_as_keys(attention):
    mask = torch.zeros(4, 4, dtype=torch.bool)
    masked = torch.allclose(*_reads(attention, 4, 4, size=1e5, mask=mask))
    return masked and torch.allclose(*_reads(attention, 4, 4, is_causal=True))


@mutant("1.1.7", "masks with the number -1e4")
def only_small_scores(attention):
    mask = torch.zeros(3, 5, dtype=torch.bool)
    masked = torch.allclose(*_reads(attention, 3, 5, mask=mask))
    return masked and torch.allclose(*_reads(attention, 3, 5, is_causal=True))


@mutant("1.1.7", "return True or False, got Tensor")
def not_a_bool(attention):
    came, right = _reads(attention, 3, 5)
    return came == right


@mutant("1.1.7", "raised AssertionError")
def raises(attention):
    raise AssertionError
