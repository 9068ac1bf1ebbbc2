"""Reinforced pathways: softmax at strength zero, the stated recurrence, more use, more recall."""

import pytest
import torch
from torch.nn.functional import normalize

from attnlib.memory.reinforced_pathways import reinforced_attention
from attnlib.support import window
from attnlib.weight.softmax_attention import softmax_attention


def drawn(length, width=4, value_width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (width, width, value_width)
    return [torch.randn(2, length, n, generator=generator, dtype=torch.float64) for n in sizes]


@pytest.mark.parametrize("last", [None, 3])
def test_without_strength_it_is_softmax_attention_bit_for_bit(last):
    query, key, value = drawn(9)
    support = None if last is None else window(last)
    wanted = softmax_attention(query, key, value, support=support, is_causal=True)
    got = reinforced_attention(query, key, value, strength=0.0, window=last)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("last", [None, 3])
@pytest.mark.parametrize("length", [1, 15, 63])
def test_the_dense_form_is_the_recurrence_that_keeps_a_matrix(length, last):
    query, key, value = drawn(length)
    state, reads = torch.zeros(2, 4, 3).double(), []
    for t in range(length):
        first = 0 if last is None else max(0, t - last + 1)
        k, v, q = key[:, first : t + 1], value[:, first : t + 1], query[:, t : t + 1]
        weights = (q @ k.mT * 4**-0.5).softmax(-1)
        unit_q, unit_k = normalize(q, dim=-1), normalize(k, dim=-1)
        reads.append(weights @ v + unit_q @ state)
        used = weights * (unit_q @ unit_k.mT).relu()
        state = 0.9 * state + 0.5 * (used.mT * unit_k).mT @ v
    got = reinforced_attention(query, key, value, strength=0.5, decay=0.9, window=last)
    torch.testing.assert_close(got, torch.cat(reads, dim=1), rtol=0, atol=1e-12)


def test_pairs_asked_for_more_often_are_read_louder_when_the_window_has_passed():
    key = torch.eye(8).double()
    value = torch.eye(8).double()
    asked = torch.tensor([0, 0, 0, 1])
    none = torch.zeros(4, 8).double()
    query = torch.cat((0 * key[:2], key[asked], 0 * key[:6], key[:2]))
    keys = torch.cat((key[:2], none, key[2:], none[:2]))
    values = torch.cat((value[:2], none, value[2:], none[:2]))
    read = reinforced_attention(query, keys, values, strength=1.0, window=6)
    assert read[-2, 0] > 2 * read[-1, 1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength must not be negative"),
        ({"decay": 1.5}, "decay must lie in 0 ... 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"is_causal": False}, "is_causal must be True"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        reinforced_attention(*drawn(4), **options)
