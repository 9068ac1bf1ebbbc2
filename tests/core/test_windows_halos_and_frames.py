"""Shifted windows, halos and receding frames read what attend reads over their supports."""

import importlib
import itertools
import math

import pytest
import torch

from attnlib import attend, halo_attention, radial_attention, window_attention
from attnlib.patterns import blocks, halo, radial
from attnlib.read.halo_attention import dense_halo_attention
from attnlib.support import dense


def draw(places, keys=None, lead=(2, 2), key_lead=None):
    generator = torch.Generator().manual_seed(places)
    sizes = (
        (lead, places, 4),
        (key_lead or lead, keys or places, 4),
        (key_lead or lead, keys or places, 3),
    )
    return [
        torch.randn(*first, rows, width, generator=generator, dtype=torch.float64).requires_grad_()
        for first, rows, width in sizes
    ]


def assert_same_read_and_gradients(got, wanted, inputs):
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def places_of(grid):
    return math.prod(grid) if isinstance(grid, tuple) else grid


WINDOWS = [
    (1, 1, 0),
    (15, 5, 2),
    (63, 9, 4),
    (100, 20, 19),
    (257, 257, 100),
    ((1, 1), 1, 0),
    ((5, 7), (5, 1), 0),
    ((9, 9), 3, (1, 2)),
    ((4, 6, 5), (2, 3, 5), (1, 1, 2)),
]


@pytest.mark.parametrize(("grid", "window", "shift"), WINDOWS, ids=str)
def test_rolled_windows_read_what_the_dense_form_reads(grid, window, shift):
    inputs = draw(places_of(grid))
    got = window_attention(*inputs, grid=grid, window=window, shift=shift)
    wanted = attend(*inputs, support=blocks(grid, window, shift))
    assert_same_read_and_gradients(got, wanted, inputs)


def seen_across(attention, **options):
    """Whether a query before place 4 of a line of 8 has a gradient from the keys behind it."""
    query, key, value = draw(8, lead=(1,))
    attention(query, key, value, **options)[0, :4].sum().backward()
    return key.grad[0, 4:].abs().sum() > 0


def test_no_gradient_crosses_a_border_unless_windows_shift_or_have_a_halo():
    assert not seen_across(window_attention, window=4)
    assert seen_across(window_attention, window=4, shift=2)
    assert not seen_across(halo_attention, block=4, halo=0)
    assert seen_across(halo_attention, block=4, halo=1)


HALOS = [
    (1, 1, 0, 1),
    (15, 5, 3, 1),
    (63, 7, 9, 7),
    (100, 10, 2, 5),
    (257, 1, 4, 1),
    ((1, 1), 1, 2, 1),
    ((5, 7), (5, 7), 1, 1),
    ((9, 9), 3, (1, 2), 3),
    ((4, 6, 5), (2, 3, 5), (1, 0, 2), (2, 1, 1)),
]


@pytest.mark.parametrize("with_vectors", [False, True])
@pytest.mark.parametrize(("grid", "block", "reach", "stride"), HALOS, ids=str)
def test_blocks_with_a_halo_read_what_the_dense_form_reads(
    grid, block, reach, stride, with_vectors
):
    axes = grid if isinstance(grid, tuple) else (grid,)
    sides, halos, steps = (
        x if isinstance(x, tuple) else (x,) * len(axes) for x in (block, reach, stride)
    )
    queries = math.prod(n // step for n, step in zip(axes, steps, strict=True))
    inputs = draw(queries, math.prod(axes))
    rule = {"grid": grid, "block": block, "halo": reach, "stride": stride}
    if with_vectors:
        lengths = (2 * (side + more) - 1 for side, more in zip(sides, halos, strict=True))
        generator = torch.Generator().manual_seed(1)
        rule["relative"] = torch.randn(*lengths, 4, generator=generator).double().requires_grad_()
        inputs_of_both = [*inputs, rule["relative"]]
        wanted = dense_halo_attention(*inputs, **rule)
    else:
        inputs_of_both = inputs
        wanted = attend(*inputs, support=halo(grid, block, reach, stride))
    assert_same_read_and_gradients(halo_attention(*inputs, **rule), wanted, inputs_of_both)


def test_a_relative_vector_is_added_to_the_keys_that_lie_there():
    query, key, value = draw(6, lead=(1,))
    relative = torch.zeros(2 * (3 + 1) - 1, 4, dtype=torch.float64)
    relative[3 + 1] = 50 * torch.ones(4)  # one place ahead
    read = halo_attention(query.abs() + 1, key, value, block=3, halo=1, relative=relative)
    assert torch.allclose(read[0, :-1], value[0, 1:], atol=1e-9)


FRAMES = [(1, 1, 0), (3, 5, 0), (7, 9, 1), (2, 50, 2), (257, 1, 0), (40, 3, 1), (5, 33, 0)]


@pytest.mark.parametrize(("frames", "places", "sinks"), FRAMES, ids=str)
def test_stretches_of_frames_read_what_the_dense_form_reads(frames, places, sinks):
    inputs = draw(frames * places)
    got = radial_attention(*inputs, frames=frames, sink_frames=sinks)
    wanted = attend(*inputs, support=radial(frames, places, sinks))
    assert_same_read_and_gradients(got, wanted, inputs)


def test_runs_of_stretches_do_not_change_the_read(monkeypatch):
    inputs = draw(3 * 100)
    wanted = radial_attention(*inputs, frames=3)
    form = importlib.import_module("attnlib.read.radial_attention")
    monkeypatch.setattr(form, "PAIRS_AT_ONCE", 1)
    assert_same_read_and_gradients(radial_attention(*inputs, frames=3), wanted, inputs)


@pytest.mark.parametrize(("frames", "places"), [(3, 16), (5, 7)])
def test_the_kernel_reads_the_same_frames(frames, places):
    pytest.importorskip("triton")
    inputs = draw(frames * places, lead=(1, 2))
    got = radial_attention(*inputs, frames=frames, backend="triton")
    wanted = attend(*inputs, support=radial(frames, places))
    assert_same_read_and_gradients(got, wanted, inputs)


@pytest.mark.parametrize(("frames", "places", "sinks"), [(9, 4, 1), (20, 3, 0), (6, 10, 2)])
def test_a_radial_support_is_the_papers_rule_place_by_place(frames, places, sinks):
    def sees(query, key):
        (i, k), (j, m) = divmod(query, places), divmod(key, places)
        power = 2 ** int(math.log2(max(abs(i - j), 1)))
        if power <= places and abs(k - m) + 1 <= places / power:
            return True
        return j < sinks or (k == m and abs(i - j) % math.ceil(power / places) == 0)

    tokens = range(frames * places)
    wanted = torch.tensor([[sees(i, j) for j in tokens] for i in tokens])
    assert torch.equal(dense(radial(frames, places, sinks), len(tokens), len(tokens))[0, 0], wanted)


def test_each_doubling_of_the_frames_adds_about_as_many_keys():
    places = 16

    def keys_of_the_first_frame(frames):
        seen = radial(frames, places, 0)(
            None, None, torch.arange(places)[:, None], torch.arange(frames * places)[None]
        )
        return seen.sum().item() / places

    counts = [keys_of_the_first_frame(2**power) for power in range(2, 11)]
    added = [after - before for before, after in itertools.pairwise(counts)]
    assert max(added) <= 2 * places
    assert min(added) >= places - 1
    assert sum(added[-3:]) == 3 * places  # once the band is a diagonal: `places` keys a doubling


@pytest.mark.parametrize(
    ("call", "options"),
    [
        (window_attention, {"window": 3}),
        (halo_attention, {"block": 3, "halo": 1}),
        (radial_attention, {"frames": 3}),
    ],
)
def test_heads_may_share_keys_or_be_absent(call, options):
    query, key, value = draw(9, lead=(2, 4), key_lead=(2, 2))
    shared = call(query, key, value, enable_gqa=True, scale=0.3, **options)
    alone = call(query[1, 3], key[1, 1], value[1, 1], scale=0.3, **options)
    assert torch.allclose(shared[1, 3], alone, atol=1e-12)


WRONG = [
    (
        window_attention,
        {"grid": (3, 4), "window": 3},
        "window must divide the grid.*got 3 for the 4",
    ),
    (
        window_attention,
        {"grid": (3, 4), "window": (3, 4), "shift": 3},
        "shift must be less than window",
    ),
    (
        window_attention,
        {"grid": (3, 5), "window": 1},
        r"query must have one row.*15 in all, got 12",
    ),
    (halo_attention, {"grid": (3, 4), "block": 2}, "block must divide the grid.*got 2 for the 3"),
    (halo_attention, {"block": 4, "halo": -1}, "halo must be at least 0, got -1"),
    (halo_attention, {"block": 4, "stride": 3}, "stride must divide size, got 3 and 4"),
    (
        halo_attention,
        {"block": 4, "stride": 2},
        "query must have one row for each place of the grid",
    ),
    (
        halo_attention,
        {"block": 4, "halo": 1, "relative": torch.zeros(4, 4, dtype=torch.float64)},
        r"relative must have one vector for each displacement, shape \(9, 4\), got \(4, 4\)",
    ),
    (radial_attention, {"frames": 5}, "frames must divide the 12 tokens of query, got 5"),
    (radial_attention, {"frames": 0}, "frames must be at least 1, got 0"),
    (radial_attention, {"frames": 3, "sink_frames": 4}, "sink_frames must be at most the 3 frames"),
]


@pytest.mark.parametrize(("call", "options", "message"), WRONG)
def test_what_does_not_fit_is_refused_by_name(call, options, message):
    with pytest.raises(ValueError, match=message):
        call(*draw(12), **options)
