"""Rows in blocks and tiles of elementwise weights: the numbers of `attend` in less memory."""

from functools import partial

import pytest
import torch

from attnlib import attend, sigmoid_attention
from attnlib.counting import largest_tensor
from attnlib.read.elementwise_tiles import attend_in_tiles
from attnlib.read.row_blocks import attend_in_rows
from attnlib.score import alibi
from attnlib.score.cosine import cosine
from attnlib.support import Support, sink_and_window, window
from attnlib.weight.rectified import ramp, rectified
from attnlib.weight.sigmoid import gate, sigmoid
from attnlib.weight.signed import signed
from attnlib.weight.softplus import reweighted_softplus


def draw(queries, keys, heads=2, key_heads=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, queries, 4), (key_heads, keys, 4), (key_heads, keys, 3)
    return [torch.randn(2, *s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def assert_same_read_and_gradients(got, wanted, inputs):
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


MASK = torch.rand(2, 1, 9, 11, generator=torch.Generator().manual_seed(3)) < 0.5
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "causal, later": {"is_causal": True, "query_offset": 4},
    "window": {"support": window(3), "query_offset": 2},
    "sink": {"support": sink_and_window(1, 2)},
    "mask": {"attn_mask": MASK},
    "mask, causal": {"attn_mask": MASK, "is_causal": True, "query_offset": 1},
    "mask of one row": {"attn_mask": torch.arange(11) % 3 > 0},
    "alibi": {"score_mod": alibi(2), "is_causal": True},
    "scale": {"scale": 0.3},
    "by head": {"support": Support(lambda b, h, q, k: (q + h) % 2 == k % 2, "parity")},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_rows_and_tiles_are_attend(name, chunk):
    options, inputs = OPTIONS[name], draw(9, 11)
    rows = {"weight": signed}, {"weight": reweighted_softplus, "score": cosine}
    for given in rows:
        got = attend_in_rows(*inputs, **given, **options, chunk=chunk)
        assert_same_read_and_gradients(got, attend(*inputs, **given, **options), inputs)
    tiles = (ramp, rectified), (partial(gate, bias=None), sigmoid)
    for part, whole in tiles:
        got = attend_in_tiles(*inputs, weight_of=part, **options, chunk=chunk)
        assert_same_read_and_gradients(got, attend(*inputs, weight=whole, **options), inputs)


@pytest.mark.parametrize("form", [attend_in_rows, partial(attend_in_tiles, weight_of=ramp)])
def test_heads_of_a_group_share_their_keys(form):
    inputs = draw(6, 7, heads=4)
    weight = rectified if isinstance(form, partial) else signed
    given = {} if isinstance(form, partial) else {"weight": signed}
    got = form(*inputs, **given, enable_gqa=True, chunk=2)
    assert_same_read_and_gradients(got, attend(*inputs, weight=weight, enable_gqa=True), inputs)


@pytest.mark.parametrize("form", [attend_in_rows, partial(attend_in_tiles, weight_of=ramp)])
@pytest.mark.parametrize(("queries", "keys"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_reads_zero_and_has_a_gradient(form, queries, keys):
    inputs = draw(queries, keys)
    read = form(*inputs, is_causal=True)
    assert read.shape == (2, 2, queries, 3)
    assert not read.any()
    for slope, tensor in zip(torch.autograd.grad(read.sum(), inputs), inputs, strict=True):
        assert slope.shape == tensor.shape


@pytest.mark.parametrize(
    ("form", "most"),
    [(attend_in_rows, 16 * 256), (partial(attend_in_tiles, weight_of=ramp), 256 * 4)],
    ids=["rows", "tiles"],
)
def test_no_table_of_all_scores_is_made_in_either_direction(form, most):
    inputs = [x[0, 0].detach().requires_grad_() for x in draw(256, 256)]
    assert 0 < largest_tensor(lambda: form(*inputs, chunk=16)) <= most
    read = form(*inputs, chunk=16)
    assert 0 < largest_tensor(lambda: read.sum().backward()) <= most


def test_tiles_that_nobody_sees_are_not_computed():
    seen = []

    def counted(scores, count):
        seen.append(tuple(scores.shape[-2:]))
        return ramp(scores, count)

    query, key, value = (x.detach() for x in draw(8, 8))
    attend_in_tiles(query, key, value, weight_of=counted, support=window(2), chunk=2)
    assert len(seen) == 4 + 3


def test_half_precision_is_summed_in_float32():
    query, key, value = (x.detach().half() for x in draw(4, 3000))
    got = sigmoid_attention(query, key, value + 1, chunk=500)
    exact = sigmoid_attention(query.double(), key.double(), (value + 1).double())
    assert got.dtype == torch.float16
    assert (got - exact).abs().max() < 2e-3
