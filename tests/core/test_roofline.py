"""Costs of a decoding step, counted twice: by the formula and by running it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnlib.roofline import H100, Chip, Cost, latent_step, shared_heads_step


def test_formula_counts_what_the_products_of_a_step_do():
    heads, key_heads, width, tokens = 8, 2, 16, 100
    query = torch.ones(key_heads, heads // key_heads, width)
    key, value = torch.ones(2, key_heads, tokens, width, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        (query.bfloat16() @ key.mT) @ value
    cost = shared_heads_step(tokens, heads=heads, key_heads=key_heads, width=width)
    assert cost.operations == counter.get_total_flops()
    assert cost.bytes == key.nbytes + value.nbytes


def test_latent_formula_counts_what_the_absorbed_products_do():
    heads, latent, rotary, tokens = 8, 32, 8, 100
    query = torch.ones(heads, latent + rotary)
    cache = torch.ones(tokens, latent + rotary, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        weights = query.bfloat16() @ cache.mT
        weights @ cache[:, :latent]
    cost = latent_step(tokens, heads=heads, latent=latent, rotary=rotary)
    assert cost.operations == counter.get_total_flops()
    assert cost.bytes == cache.nbytes


def test_intensity_of_shared_heads_is_the_group_size_in_two_byte_numbers():
    for key_heads in (1, 4, 32):
        cost = shared_heads_step(1000, heads=32, key_heads=key_heads, width=128)
        assert cost.intensity == 32 / key_heads


def test_fewer_key_heads_than_value_heads_leave_the_operations_as_they_are():
    even = shared_heads_step(1000, heads=32, key_heads=8, width=128)
    uneven = shared_heads_step(1000, heads=32, key_heads=4, value_heads=8, width=128)
    assert uneven.operations == even.operations
    assert uneven.bytes == 0.75 * even.bytes


def test_time_is_the_slower_of_computing_and_moving():
    chip = Chip("plain", operations=100.0, bytes=10.0)
    assert chip.balance == 10
    assert Cost(operations=200, bytes=10).seconds(chip) == 2.0
    assert Cost(operations=50, bytes=40).seconds(chip) == 4.0
    assert Cost(operations=50, bytes=40).attainable(chip) == 12.5
    assert Cost(operations=5000, bytes=40).attainable(chip) == 100.0


def test_many_heads_on_one_latent_come_near_the_balance_of_a_chip():
    cost = latent_step(1000, heads=128, latent=512, rotary=64)
    assert cost.intensity == pytest.approx(128 * 1088 / 576)
    assert 0.5 < cost.intensity / H100.balance < 1
