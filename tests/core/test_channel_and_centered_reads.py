"""Efficient, InLine and log-normal attention where keys are hidden, and what they refuse."""

import pytest
import torch

import attnlib
from attnlib import LinearState, hedgehog_attention, log_normal_attention
from attnlib.read.efficient_attention import efficient_attention, efficient_attention_step
from attnlib.read.injective_attention import (
    InjectiveState,
    injective_attention,
    injective_attention_step,
)
from attnlib.read.log_normal_attention import log_normal_attention_step

OPERATORS = (efficient_attention, injective_attention)
STEPS = (efficient_attention_step, injective_attention_step)


def draw(length, heads=2):
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(heads, length, width, generator=generator) for width in (4, 4, 3)]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", (200.0, 1e4))
def test_a_hidden_key_of_any_size_leaves_gradients_finite(operator, size):
    query, key, value = draw(5)
    key[:, 0] = size
    key.requires_grad_()
    mask = torch.tensor([[False, True, True, True, True]])
    read = operator(query, key, value, attn_mask=mask)
    torch.testing.assert_close(read, operator(query, key[:, 1:], value[:, 1:]))
    (slope,) = torch.autograd.grad(read.sum(), key)
    assert slope.isfinite().all() and (slope[:, 0] == 0).all()


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_row_that_sees_no_key_has_gradients_of_zero(operator):
    query, key, value = (x.requires_grad_() for x in draw(5))
    read = operator(query, key, value, attn_mask=torch.zeros(1, 5, dtype=torch.bool))
    assert (read == 0).all()
    for slope in torch.autograd.grad(read.sum(), (query, key, value)):
        assert (slope == 0).all()


def test_centered_scores_are_summed_in_single_precision_under_any_mask():
    query = torch.full((1, 40, 4), 100.0).half()
    key, value = query / 2, torch.ones(1, 40, 3).half()
    mask = torch.ones(40, 40, dtype=torch.bool).tril()
    read = injective_attention(query, key, value, attn_mask=mask)
    assert (read == 1).all()


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_mask_by_query_is_no_way_around_the_checks(operator):
    mask = torch.ones(3, 3, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        operator(*draw(3), attn_mask=mask, chunk=0)
    with pytest.raises(ValueError, match="backend must be one of"):
        operator(*draw(3), attn_mask=mask, backend="cuda")
    with pytest.raises(ValueError, match="backend='triton' cannot run this call"):
        operator(*draw(3), attn_mask=mask, backend="triton")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_takes_one_token_of_one_width_and_its_own_state(step):
    query, key, value = draw(1)
    with pytest.raises(ValueError, match="query must have one token, got 2"):
        step(None, *draw(2))
    with pytest.raises(ValueError, match="key must have the width of query"):
        step(None, query[..., :3], key, value)
    with pytest.raises(TypeError, match="state must be a"):
        step((1, 2), query, key, value)
    _, one_head = step(None, *draw(1, heads=1))
    with pytest.raises(ValueError, match="state"):
        step(one_head, query, key, value)


def test_parts_of_a_state_and_a_scale_are_named():
    query, key, value = draw(1)
    empty = LinearState(None, None)
    with pytest.raises(TypeError, match=r"state\.matrix must be a torch\.Tensor"):
        efficient_attention_step(empty, query, key, value)
    with pytest.raises(TypeError, match=r"state\.key must be a torch\.Tensor"):
        injective_attention_step(
            InjectiveState(torch.zeros(2, 4, 3), None, None, None), query, key, value
        )
    with pytest.raises(ValueError, match="scale must be a positive finite number"):
        injective_attention_step(None, query, key, value, scale=float("nan"))


@pytest.mark.parametrize(
    ("number", "kind"), ((float("nan"), ValueError), (torch.inf, ValueError), (True, TypeError))
)
@pytest.mark.parametrize("name", ("alpha", "beta"))
def test_exponents_are_finite_numbers(name, number, kind):
    with pytest.raises(kind, match=f"{name} must be"):
        log_normal_attention(*draw(3), **{name: number})
    with pytest.raises(kind, match=f"{name} must be"):
        log_normal_attention_step(None, *draw(1), **{name: number})


@pytest.mark.parametrize("matrix", (torch.ones(4), torch.ones(5, 4, 4), torch.ones(3, 1, 4, 4)))
def test_a_matrix_that_fits_no_head_is_named(matrix):
    for name in ("query_matrix", "key_matrix"):
        matrices = {"query_matrix": torch.eye(4), "key_matrix": torch.eye(4), name: matrix}
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            hedgehog_attention(*draw(3), **matrices)
    with pytest.raises(TypeError, match=r"query_matrix must be a torch\.Tensor"):
        attnlib.hedgehog_attention(*draw(3), query_matrix=None, key_matrix=torch.eye(4))
