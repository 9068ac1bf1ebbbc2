"""Patterns by place are the sets that their papers write down."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from attnlib import attend
from attnlib.patterns import (
    contiguous_blocks,
    fixed,
    global_and_window,
    random_blocks,
    strided,
)
from attnlib.support import causal, dense, dilated, window


def table(support, length=20):
    return dense(support, length, length)[0, 0]


def by_definition(rule, length=20):
    return torch.tensor([[rule(i, j) for j in range(length)] for i in range(length)])


def test_strided_is_the_union_of_the_last_keys_and_every_lth():
    def rule(i, j):
        return j in range(max(0, i - 4), i + 1) or (j <= i and (i - j) % 4 == 0)

    assert torch.equal(table(strided(4)), by_definition(rule))
    assert torch.equal(table(strided(4)), table(window(5) | (dilated(4) & causal)))


def test_fixed_is_the_own_block_and_the_last_places_of_every_block():
    def rule(i, j):
        return j <= i and (j // 5 == i // 5 or j % 5 in (3, 4))

    assert torch.equal(table(fixed(5, 2)), by_definition(rule))


def test_global_tokens_see_and_are_seen_by_all_and_the_others_their_neighbors():
    def rule(i, j):
        return abs(i - j) < 3 or i in (0, 7) or j in (0, 7)

    seen = table(global_and_window(3, [0, 7]))
    assert torch.equal(seen, by_definition(rule))
    assert torch.equal(seen, seen.T)
    assert torch.equal(table(global_and_window(3, [])), table(window(3, two_sided=True)))


def test_each_block_of_queries_has_its_count_of_random_blocks_and_a_seed_repeats_them():
    seen = table(random_blocks(5, 4, count=2, seed=0))
    tiles = seen.view(5, 4, 5, 4).transpose(1, 2).flatten(2)
    assert torch.equal(tiles.all(-1), tiles.any(-1))
    assert (tiles.all(-1).sum(-1) == 2).all()
    assert torch.equal(seen, table(random_blocks(5, 4, count=2, seed=0)))
    assert not torch.equal(seen, table(random_blocks(5, 4, count=2, seed=1)))


def test_contiguous_blocks_are_squares_on_the_diagonal():
    assert torch.equal(table(contiguous_blocks(6)), by_definition(lambda i, j: i // 6 == j // 6))


@pytest.mark.parametrize("support", [strided(8), fixed(8)], ids=str)
def test_two_layers_reach_every_earlier_key(support):
    seen = table(support, 64).double()
    assert torch.equal((seen @ seen) > 0, torch.ones(64, 64).tril().bool())


def test_a_global_token_passes_every_key_on_in_two_layers_but_not_in_a_causal_model():
    support = global_and_window(3, [0])
    seen, one_sided = table(support, 64).double(), table(support & causal, 64).double()
    assert ((seen @ seen) > 0).all()
    assert not ((one_sided @ one_sided)[-1] > 0).all()


def test_a_window_alone_does_not_reach_every_key_in_two_layers():
    seen = table(window(8), 64).double()
    assert not ((seen @ seen)[-1] > 0).all()


def test_strided_counts_about_two_roots_of_the_length_a_query():
    for root in (8, 16, 32):
        assert table(strided(root), root**2)[-1].sum() == 2 * root - 1


@pytest.mark.parametrize(
    "support",
    [
        strided(4),
        fixed(5, 2),
        global_and_window(3, [0, 7]),
        contiguous_blocks(6),
        random_blocks(5, 4, count=2, seed=0),
    ],
    ids=str,
)
def test_flex_attention_takes_every_pattern_unchanged(support):
    assert torch.equal(create_mask(support, 1, 1, 20, 20, device="cpu")[0, 0], table(support))


def test_a_pattern_combines_and_goes_into_attend():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    big_bird = random_blocks(5, 4, count=1, seed=0) | global_and_window(2, [0])
    _, weights = attend(x, x, x, support=big_bird, return_weights=True)
    assert torch.equal(weights > 0, table(big_bird))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: strided(0), "stride"),
        (lambda: fixed(4, 5), "summaries"),
        (lambda: fixed(4, 0), "summaries"),
        (lambda: global_and_window(0, [0]), "width"),
        (lambda: global_and_window(2, [-1]), "places"),
        (lambda: global_and_window(2, [1, 1]), "places"),
        (lambda: global_and_window(2, 3), "places"),
        (lambda: contiguous_blocks(0), "block_size"),
        (lambda: random_blocks(4, 4, count=5, seed=0), "count"),
        (lambda: random_blocks(4, 4, count=2, seed=0.5), "seed"),
    ],
)
def test_wrong_numbers_are_refused_by_name(make, name):
    with pytest.raises((ValueError, TypeError), match=name):
        make()


def test_random_blocks_refuse_a_longer_sequence():
    x = torch.zeros(21, 4)
    with pytest.raises(ValueError, match="support"):
        attend(x, x, x, support=random_blocks(5, 4, count=2, seed=0))
