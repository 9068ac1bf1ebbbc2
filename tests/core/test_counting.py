"""Counting the largest tensor: known sizes, and what it is used to show."""

import pytest
import torch

from attnlib import attend, chunked_softmax_attention
from attnlib.counting import bytes_touched, largest_tensor


def test_an_outer_product_makes_a_table():
    x, y = torch.ones(5), torch.ones(7)
    assert largest_tensor(lambda: x[:, None] * y) == 35


def test_what_is_made_on_the_way_counts_and_not_what_was_there_before():
    x = torch.ones(1000)
    assert largest_tensor(lambda: torch.ones(6, 1) + torch.ones(1, 4)) == 24
    assert largest_tensor(lambda: (torch.ones(6, 1) + torch.ones(1, 4)).sum()) == 24
    assert largest_tensor(lambda: x.sum()) == 1


def test_operations_that_give_several_tensors_are_counted_by_their_largest():
    x = torch.ones(10, 3)
    assert largest_tensor(lambda: x.split([2, 8])) == 24
    assert largest_tensor(lambda: x.max(dim=0)) == 3


def test_the_backward_pass_counts_too():
    x = torch.ones(3, requires_grad=True)

    def loss():
        return (2 * x).sum()

    assert largest_tensor(loss) == 3
    assert largest_tensor(lambda: torch.autograd.grad(loss(), x)) == 3
    wide = torch.ones(4, 50, requires_grad=True)
    total = (wide * wide).sum()
    assert largest_tensor(lambda: torch.autograd.grad(total, wide)) == 200


def test_a_computation_without_tensors_makes_none():
    assert largest_tensor(lambda: sum(range(10))) == 0


def test_counting_starts_anew_and_ends_also_after_an_error():
    assert largest_tensor(lambda: torch.ones(100)) == 100
    assert largest_tensor(lambda: torch.ones(10)) == 10

    def fails():
        torch.ones(3) @ torch.ones(4)

    with pytest.raises(RuntimeError):
        largest_tensor(fails)
    assert largest_tensor(lambda: torch.ones(2)) == 2


def test_attention_in_chunks_never_makes_the_whole_table():
    query, key = torch.ones(1, 48, 4), torch.ones(1, 64, 4)
    assert largest_tensor(lambda: attend(query, key, key)) == 48 * 64
    in_chunks = largest_tensor(lambda: chunked_softmax_attention(query, key, key, chunk=16))
    assert in_chunks == 16 * 16 > query.numel()


def test_bytes_of_each_operation_are_added_up():
    matrix = torch.ones(4, 4)  # 64 bytes
    assert bytes_touched(lambda: matrix + matrix) == 3 * 64
    assert bytes_touched(lambda: (matrix + 1).exp()) == 4 * 64  # in, out, in, out


def test_views_touch_nothing_and_writing_in_place_does():
    matrix = torch.ones(4, 4)
    assert bytes_touched(lambda: matrix.T[1:].reshape(4, 3)[:2]) == 2 * 48  # reshape copies
    assert bytes_touched(lambda: matrix.expand(5, 4, 4).transpose(0, 1)) == 0
    assert bytes_touched(lambda: matrix.mul_(2)) == 2 * 64
