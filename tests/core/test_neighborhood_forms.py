"""Neighborhood attention in tiles is attend over the neighborhood, gradients too, at odd sizes."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnlib import attend, generalized_neighborhood_attention, neighborhood_attention
from attnlib.patterns import blocks, neighborhood
from attnlib.read import grid_tiles
from attnlib.read.neighborhood_attention import dense_neighborhood_attention


def draw(grid, lead=(2, 2), key_lead=None, dtype=torch.float64):
    places = math.prod(grid) if isinstance(grid, tuple) else grid
    generator = torch.Generator().manual_seed(places)
    leads = lead, key_lead or lead, key_lead or lead
    return [
        torch.randn(*first, places, width, generator=generator, dtype=dtype).requires_grad_()
        for first, width in zip(leads, (4, 4, 3), strict=True)
    ]


def assert_same_read_and_gradients(got, wanted, inputs):
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


ODD = [
    (1, {"window": 1}),
    (15, {"window": 5, "dilation": 3}),
    (63, {"window": 7, "is_causal": True}),
    (100, {"window": 9, "dilation": 11}),
    (257, {"window": 31}),
    ((1, 1), {"window": 1}),
    ((5, 7), {"window": (5, 7)}),
    ((5, 7), {"window": 3, "is_causal": (True, False)}),
    ((9, 9), {"window": 3, "dilation": (2, 3)}),
    ((3, 4, 5), {"window": 3, "is_causal": (True, False, False)}),
    ((2, 11, 12), {"window": (1, 5, 3), "dilation": (1, 2, 4)}),
]


@pytest.mark.parametrize(("grid", "rule"), ODD, ids=str)
def test_the_tiles_read_what_the_dense_form_reads(grid, rule):
    inputs = draw(grid)
    got = neighborhood_attention(*inputs, grid=grid, **rule)
    wanted = attend(*inputs, support=neighborhood(grid, **rule))
    assert_same_read_and_gradients(got, wanted, inputs)


STRIDES = [
    (257, {"window": 16, "stride": 5}),
    (100, {"window": 10, "stride": 10, "is_causal": True}),
    ((9, 9), {"window": 4, "stride": 3, "dilation": 2}),
    ((17, 13), {"window": (8, 2), "stride": (4, 2)}),
    ((3, 4, 5), {"window": (3, 2, 4), "stride": (1, 2, 3), "is_causal": (False, True, False)}),
]


@pytest.mark.parametrize(("grid", "rule"), STRIDES, ids=str)
def test_groups_of_a_stride_read_what_the_dense_form_reads(grid, rule):
    inputs = draw(grid)
    got = generalized_neighborhood_attention(*inputs, grid=grid, **rule)
    wanted = dense_neighborhood_attention(*inputs, grid=grid, **rule)
    assert_same_read_and_gradients(got, wanted, inputs)


def test_a_stride_of_one_is_the_neighborhood_and_of_a_window_is_blocks():
    inputs = draw((6, 9))
    one = generalized_neighborhood_attention(*inputs, grid=(6, 9), window=3, stride=1)
    assert torch.equal(one, neighborhood_attention(*inputs, grid=(6, 9), window=3))
    block = generalized_neighborhood_attention(*inputs, grid=(6, 9), window=3, stride=3)
    assert torch.allclose(block, attend(*inputs, support=blocks((6, 9), 3)), atol=1e-12)


def test_a_window_of_the_whole_grid_is_full_attention():
    inputs = draw((5, 7))
    got = neighborhood_attention(*inputs, grid=(5, 7), window=(5, 7))
    assert torch.allclose(got, attend(*inputs), atol=1e-12)


def test_runs_of_tiles_do_not_change_the_read(monkeypatch):
    inputs = draw((20, 30))
    wanted = neighborhood_attention(*inputs, grid=(20, 30), window=5)
    monkeypatch.setattr(grid_tiles, "PAIRS_AT_ONCE", 1)
    got = neighborhood_attention(*inputs, grid=(20, 30), window=5)
    assert_same_read_and_gradients(got, wanted, inputs)


def test_heads_may_share_keys_or_be_absent():
    inputs = draw((5, 7), lead=(2, 4), key_lead=(2, 2))
    rule = {"grid": (5, 7), "window": 3, "scale": 0.3, "enable_gqa": True}
    got = neighborhood_attention(*inputs, **rule)
    assert_same_read_and_gradients(got, dense_neighborhood_attention(*inputs, **rule), inputs)
    alone = [x[0, 0] for x in inputs]
    got = neighborhood_attention(*alone, grid=(5, 7), window=3)
    wanted = dense_neighborhood_attention(*alone, grid=(5, 7), window=3)
    assert torch.allclose(got, wanted, atol=1e-12)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made inside."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


@pytest.mark.parametrize("backward", [False, True])
def test_no_tensor_grows_faster_than_the_grid(backward):
    def largest(side):
        inputs = draw((side, side), lead=(1,), dtype=torch.float32)
        with Largest() as seen:
            read = neighborhood_attention(*inputs, grid=(side, side), window=5)
            if backward:
                read.sum().backward()
        return seen.numbers

    small, large = largest(32), largest(96)
    assert large < 9.5 * small
    assert large < 96**4 / 20


@pytest.mark.parametrize(
    ("grid", "rule"),
    [(15, {"window": 4, "stride": 2, "dilation": 2}), ((5, 7), {"window": 3, "is_causal": True})],
)
def test_the_kernel_reads_the_same(grid, rule):
    pytest.importorskip("triton")
    inputs = draw(grid, lead=(1, 2))
    got = generalized_neighborhood_attention(*inputs, grid=grid, backend="triton", **rule)
    wanted = dense_neighborhood_attention(*inputs, grid=grid, **rule)
    assert_same_read_and_gradients(got, wanted, inputs)
    alone = [x[0, 0] for x in inputs]
    got = generalized_neighborhood_attention(*alone, grid=grid, backend="triton", **rule)
    assert torch.allclose(got, wanted[0, 0], atol=1e-12)


def test_the_kernel_says_which_widths_it_cannot_take():
    pytest.importorskip("triton")
    inputs = [torch.ones(1, 3, 257)] * 3
    with pytest.raises(ValueError, match="widths from 1 to 256, got D = 257"):
        neighborhood_attention(*inputs, window=3, backend="triton")


WRONG = [
    ({"window": 4}, "window must be odd.*got 4; generalized_neighborhood_attention"),
    ({"window": (3, 2)}, r"window must be odd.*got \(3, 2\)"),
    ({"window": 9}, r"fit into the grid \(5, 7\), got window 9 and dilation 1 on axis 0 of 5"),
    ({"window": 3, "dilation": 2}, "got window 3 and dilation 2 on axis 0 of 5"),
    ({"window": 3, "grid": (5, 8)}, r"query must have one row for each place.*40 in all, got 35"),
    ({"window": 3, "backend": "cuda"}, "backend"),
]


@pytest.mark.parametrize(("rule", "message"), WRONG)
def test_what_does_not_fit_is_refused_by_name(rule, message):
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(*draw((5, 7)), **{"grid": (5, 7), **rule})


def test_keys_of_another_number_are_refused():
    query, key, value = draw(9)
    with pytest.raises(ValueError, match="key must have one row for each place"):
        neighborhood_attention(query, key[..., :8, :], value[..., :8, :], window=3)
