"""Discs, foveas and rectangles: fast forms equal dense attention and refuse what does not fit."""

import math

import pytest
import torch

from attnlib.attend import attend
from attnlib.patterns.grid import disc, rectangles
from attnlib.read.disc_attention import dense_disc_attention, disc_attention, text_and_disc
from attnlib.read.foveal_attention import (
    aggregated_attention,
    aggregated_weights,
    dense_foveal_attention,
    fovea,
    foveal_attention,
    pooled,
)
from attnlib.read.grid_offsets import disc_offsets, window_offsets
from attnlib.read.rectangle_attention import dense_rectangle_attention, rectangle_attention
from attnlib.support import dense


def tokens(count, *, seed=0, width=4, value_width=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 2, count, size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (width, width, value_width)
    ]


def assert_same_read_and_gradients(fast, slow, inputs):
    got, wanted = fast(*inputs), slow(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("grid", [(5, 7), (1, 9), (2, 3, 4), (11,)])
@pytest.mark.parametrize(("radius", "text"), [(2.5, 0), (1, 3), (100, 2)])
def test_disc_attention_in_short_runs_equals_dense_attention(grid, radius, text):
    options = {"grid": grid, "radius": radius, "text": text}
    assert_same_read_and_gradients(
        lambda *qkv: disc_attention(*qkv, run=4, **options),
        lambda *qkv: dense_disc_attention(*qkv, **options),
        tokens(text + math.prod(grid)),
    )


def test_without_text_the_support_is_the_disc_and_with_text_all_see_it():
    grid, places = (4, 5), 20
    assert torch.equal(
        dense(text_and_disc(grid, 2.5), places, places), dense(disc(grid, 2.5), places, places)
    )
    seen = dense(text_and_disc(grid, 2.5, 3), places + 3, places + 3)[0, 0]
    assert seen[:3].all() and seen[:, :3].all()
    assert torch.equal(seen[3:, 3:], dense(disc(grid, 2.5), places, places)[0, 0])


def test_a_disc_holds_about_pi_times_the_radius_squared_places():
    assert [len(disc_offsets(radius, (9, 9))) for radius in (1, 1.5, 2, 3)] == [1, 9, 9, 25]
    for radius in (8, 16, 32):
        # Each place stands for a unit square; only squares that meet the circle can be miscounted.
        missed = len(disc_offsets(radius, (99, 99))) - math.pi * radius**2
        assert abs(missed) <= 2 * 2**0.5 * math.pi * radius


@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (2, 2)])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("pool", [(1, 1), (2, 2)])
def test_foveal_attention_equals_dense_attention_to_places_and_cells(grid, window, pool):
    options = {"grid": grid, "window": window, "pool": pool, "scale": 0.7}
    assert_same_read_and_gradients(
        lambda *qkv: foveal_attention(*qkv, **options),
        lambda *qkv: dense_foveal_attention(*qkv, **options),
        tokens(math.prod(grid)),
    )


def test_fine_and_coarse_weights_share_one_normalizer():
    query, key, _ = tokens(24)
    coarse = pooled(key, (4, 6), (2, 2))
    fine_weights, coarse_weights = aggregated_weights(query, key, coarse, grid=(4, 6), window=3)
    ones = torch.ones(2, 2, 24, dtype=torch.float64)
    torch.testing.assert_close(fine_weights.sum(-1) + coarse_weights.sum(-1), ones)
    assert (coarse_weights > 0).all() and (fine_weights[:, :, 0] == 0).sum() == 2 * 2 * 5


def test_a_cell_is_the_mean_of_its_places():
    x = torch.arange(24.0).view(1, 24, 1)
    assert pooled(x, (4, 6), (2, 2))[0, :, 0].tolist() == [4.0, 7.0, 16.0, 19.0]


def test_coarse_keys_may_come_from_anywhere():
    query, key, value = tokens(6)
    far_key, far_value = tokens(5, seed=1)[1:]
    got = aggregated_attention(query, key, value, far_key, far_value, grid=(2, 3), window=3)
    keys, values = torch.cat((key, far_key), -2), torch.cat((value, far_value), -2)
    torch.testing.assert_close(got, attend(query, keys, values, support=fovea((2, 3), 3)))


@pytest.mark.parametrize(
    ("grid", "height", "width"),
    [
        ((4, 6), 2, 2),
        ((4, 6), 4, 2),
        ((6, 4), 1, 2),
        ((6, 4), 2, 1),
        ((8, 8), 4, 2),
        ((8, 8), 1, 8),
    ],
)
def test_rectangle_attention_equals_dense_attention_for_every_shift(grid, height, width):
    for shift in {(0, 0), (height // 2, width // 2), (height - 1, 0), (0, width - 1)}:
        options = {"grid": grid, "height": height, "width": width, "shift": shift}
        assert_same_read_and_gradients(
            lambda *qkv, options=options: rectangle_attention(*qkv, **options),
            lambda *qkv, options=options: dense_rectangle_attention(*qkv, **options),
            tokens(math.prod(grid)),
        )


def test_no_form_builds_a_table_of_all_pairs():
    places, largest = 1024, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    query, key, value = (torch.randn(1, places, 2) for _ in range(3))
    where = {"grid": (32, 32)}
    with torch.no_grad(), Watch():
        disc_attention(query, key, value, radius=3, run=128, **where)
        foveal_attention(query, key, value, window=3, pool=(4, 4), **where)
        rectangle_attention(query, key, value, height=2, width=8, shift=1, **where)
    assert largest <= places**2 // 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: disc_attention(q, k, v, grid=(5, 5), radius=2), "query must have one row"),
        (lambda q, k, v: disc_attention(q, k, v, grid=(4, 6), radius=0), "radius must be positive"),
        (lambda q, k, v: disc_attention(q, k, v, grid=(4, 6), radius=2, text=1), "1 tokens and"),
        (lambda q, k, v: disc_attention(q, k, v, grid=(4, 6), radius=2, run=0), "run must be"),
        (lambda q, k, v: disc_attention(q, k, v, radius=2, text=24), "grid must be at least 1"),
        (
            lambda q, k, v: foveal_attention(q, k, v, grid=(4, 6), window=2, pool=(2, 2)),
            "window must be odd",
        ),
        (
            lambda q, k, v: foveal_attention(q, k, v, grid=(4, 6), window=9, pool=(2, 2)),
            "window must be at most 7",
        ),
        (
            lambda q, k, v: foveal_attention(q, k, v, grid=(4, 6), window=3, pool=(3, 2)),
            "pool must divide grid",
        ),
        (
            lambda q, k, v: aggregated_attention(q, k, v, k, v[..., :2], grid=(4, 6), window=3),
            "pooled_value must have shape",
        ),
        (
            lambda q, k, v: rectangle_attention(q, k, v, grid=(4, 6), height=3, width=2),
            "height must divide the grid",
        ),
        (
            lambda q, k, v: rectangle_attention(q, k, v, grid=(4, 6), height=2, width=2, shift=2),
            "shift must be less than",
        ),
        (
            lambda q, k, v: rectangle_attention(q, k, v, grid=(4, 5), height=2, width=5),
            "query must have one row",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*(tensor.detach() for tensor in tokens(24)))


def test_an_even_window_has_no_middle():
    with pytest.raises(ValueError, match="window must be odd"):
        window_offsets(4)
    with pytest.raises(TypeError, match="radius must be a number"):
        disc_offsets("2", (3, 3))


def test_a_rectangle_never_wraps_around_the_border():
    seen = dense(rectangles((4, 4), 2, 4, (1, 0)), 16, 16)[0, 0]
    assert not seen[0, 15] and not seen[0, 4] and seen[0, 3]
    query, key, value = tokens(16)
    read = rectangle_attention(query, key, value, grid=(4, 4), height=2, width=4, shift=(1, 0))
    slope = torch.autograd.grad(read[:, :, 0].sum(), value)[0]
    assert (slope[:, :, 4:] == 0).all() and (slope[:, :, :4] != 0).all()
