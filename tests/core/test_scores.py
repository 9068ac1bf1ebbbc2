"""Changes of the score and encodings of position, worked out by hand."""

import math

import pytest
import torch

from attnlib import attend, score
from attnlib.support import index_grid

GRID = index_grid(torch.empty(1, 2, 3, 1), 3)
ZERO = torch.zeros(1, 2, 3, 3, dtype=torch.float64)


def test_slopes_of_eight_heads_halve_from_one_half():
    assert score.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]


def test_slopes_of_twelve_heads_fill_up_from_sixteen():
    slopes = score.alibi_slopes(12).tolist()
    assert slopes[:8] == [2.0**-i for i in range(1, 9)]
    assert slopes[8:] == [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]


def test_alibi_takes_the_slope_times_the_distance():
    slopes = score.alibi_slopes(2)
    got = score.alibi(2)(ZERO, *GRID)
    distance = torch.tensor([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    assert torch.equal(got[0], -slopes[:, None, None] * distance)


def test_a_bias_adds_its_table_for_all_heads_or_one_for_each():
    table = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(score.bias(table)(ZERO, *GRID)[0], table)
    assert torch.equal(score.bias(table[0])(ZERO, *GRID), table[0].expand(1, 2, 3, 3))


def test_a_relative_bias_reads_its_table_by_clipped_distance():
    table = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double()  # j - i of -1, 0, +1
    got = score.relative_bias(table)(ZERO, *GRID)
    assert got[0, 0].tolist() == [[2, 3, 3], [1, 2, 3], [1, 1, 2]]
    assert got[0, 1, 0].tolist() == [5, 6, 6]


def test_a_soft_cap_bends_scores_and_keeps_small_ones():
    large = torch.full_like(ZERO, 1e6)
    assert score.soft_cap(30.0)(large, *GRID).max() == 30.0
    assert score.soft_cap(30.0)(ZERO + 1e-4, *GRID).sub(1e-4).abs().max() < 1e-12


def test_changes_follow_one_another_in_order():
    table = torch.full((3, 3), 2.0).double()
    change = score.then(score.bias(table), score.soft_cap(1.0))
    assert torch.allclose(change(ZERO, *GRID), torch.full_like(ZERO, math.tanh(2.0)))


def test_rotary_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 8, generator=generator).double().expand(40, 8) for _ in range(2))
    positions = torch.arange(40)
    scores = score.rotate(query, positions) @ score.rotate(key, positions).T
    for distance in range(-39, 40):
        diagonal = scores.diagonal(distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-12
    assert scores[:, 0].unique().numel() == 40


def test_rotary_attention_does_not_change_when_all_positions_shift():
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).double()

    def read(first):
        turned = score.rotate(x, torch.arange(first, first + 6))
        return attend(turned, turned, x, is_causal=True)

    assert torch.allclose(read(0), read(1000), atol=1e-10)


def test_a_rotation_turns_neighbors_by_the_angles_of_the_paper():
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]]).double()
    got = score.rotate(x, torch.tensor([3]))
    slow = 3 * 10000.0**-0.5
    wanted = [math.cos(3), math.sin(3), math.cos(slow), math.sin(slow)]
    assert torch.allclose(got[0], torch.tensor(wanted).double(), atol=1e-12)


def test_half_precision_rotations_compute_their_angles_in_double():
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    far = torch.tensor([100_003])
    exact = score.rotate(x.double(), far)
    assert (score.rotate(x, far).double() - exact).abs().max() < 0.02


def test_sinusoids_shift_by_one_linear_map_for_all_positions():
    table = score.sinusoidal(50, 6).double()
    for shift in (1, 7):
        blocks = []
        for i in range(3):
            angle = shift * 10000.0 ** (-2 * i / 6)
            c, s = math.cos(angle), math.sin(angle)
            blocks.append(torch.tensor([[c, s], [-s, c]]).double())
        matrix = torch.block_diag(*blocks)
        assert torch.allclose(table[:-shift] @ matrix.T, table[shift:], atol=1e-5)


def test_the_first_sinusoid_is_zero_and_one():
    assert score.sinusoidal(1, 4).tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("width", [0, 3])
def test_odd_widths_have_no_pairs(width):
    with pytest.raises(ValueError, match="even width"):
        score.sinusoidal(4, width)
