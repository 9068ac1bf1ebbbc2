"""What masked_softmax promises beyond closeness: exact zeros, blocks, extremes, clear errors."""

import importlib
import math

import pytest
import torch
from attnlib.kernels import masked_softmax
from attnlib.kernels.masked_softmax_proof import reference

module = importlib.import_module("attnlib.kernels.masked_softmax")


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return scores.requires_grad_(), torch.rand(shape, generator=generator) < 0.6


def test_worked_example_by_hand():
    scores = torch.tensor([[0.0, 1.0, 50.0]], dtype=torch.float64)
    weights = masked_softmax(scores, torch.tensor([True, True, False]))
    expected = torch.tensor([[1 / (1 + math.e), math.e / (1 + math.e), 0.0]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected)


def test_gradcheck():
    scores, support = draw(3, 5)
    assert torch.autograd.gradcheck(lambda s: masked_softmax(s, support), scores, fast_mode=True)


@pytest.mark.parametrize("key_block", [1, 16])
def test_size_of_the_key_block_does_not_change_the_result(monkeypatch, key_block):
    monkeypatch.setattr(module, "LARGEST_KEY_BLOCK", key_block)
    scores, support = draw(3, 63)
    support[1, :48] = False
    weights = masked_softmax(scores, support)
    expected = reference(scores, support)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-15)
    sent = draw(3, 63, seed=1)[0].detach()
    (gradient,) = torch.autograd.grad(weights, scores, sent)
    (exact,) = torch.autograd.grad(expected, scores, sent)
    torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_empty_support_reads_exactly_zero_and_sends_back_zero(dtype):
    scores, _ = draw(2, 63, dtype=dtype)
    weights = masked_softmax(scores, torch.zeros(2, 63, dtype=torch.bool))
    weights.sum().backward()
    assert weights.dtype == dtype
    assert not weights.any()
    assert not scores.grad.any()


def test_one_key_in_the_support_gets_exactly_one():
    scores, _ = draw(15, 63)
    support = torch.eye(15, 63, dtype=torch.bool)
    assert torch.equal(masked_softmax(scores, support), support.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_up_to_1e4_stay_finite_and_sum_to_one(dtype):
    scores = torch.linspace(-1e4, 1e4, 100).to(dtype).repeat(2, 1).requires_grad_()
    support = torch.arange(100) < torch.tensor([[100], [50]])
    weights = masked_softmax(scores, support)
    weights.square().sum().backward()
    torch.testing.assert_close(weights.float().sum(-1), torch.ones(2))
    assert scores.grad.isfinite().all()


def test_scores_outside_the_support_change_nothing_even_nan():
    scores, support = draw(4, 63)
    spoiled = scores.detach().masked_fill(~support, torch.nan).requires_grad_()
    weights = masked_softmax(spoiled, support)
    assert torch.equal(weights, masked_softmax(scores, support))
    weights.square().sum().backward()
    assert spoiled.grad.isfinite().all()


def test_gradients_that_arrive_outside_the_support_change_nothing_even_nan():
    scores, support = draw(4, 63)
    sent = draw(4, 63, seed=1)[0].detach()
    weights = masked_softmax(scores, support)
    (clean,) = torch.autograd.grad(weights, scores, sent, retain_graph=True)
    (spoiled,) = torch.autograd.grad(weights, scores, sent.masked_fill(~support, torch.nan))
    assert torch.equal(clean, spoiled)


def test_nan_inside_the_support_is_not_hidden():
    scores, support = draw(2, 15)
    scores = scores.detach()
    scores[0, 3], support[0, 3] = torch.nan, True
    weights = masked_softmax(scores, support)
    assert weights[0, support[0]].isnan().all()
    assert weights[1].isfinite().all()


def test_score_of_minus_infinity_counts_as_outside():
    scores, _ = draw(2, 15)
    scores = scores.detach()
    scores[0], scores[1, 4] = -torch.inf, -torch.inf
    weights = masked_softmax(scores, torch.ones((), dtype=torch.bool))
    assert not weights[0].any()
    assert weights[1, 4] == 0
    assert weights[1].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 0, 3), (0,)])
def test_length_zero_gives_an_empty_result_with_a_gradient(shape):
    scores = torch.zeros(shape, requires_grad=True)
    weights = masked_softmax(scores, torch.ones(shape, dtype=torch.bool))
    weights.sum().backward()
    assert weights.shape == shape
    assert scores.grad.shape == shape


def test_a_support_that_is_expanded_is_not_copied():
    support = torch.ones(4, 15, dtype=torch.bool).expand(8, 3, 4, 15)
    rows, numbers = module.rows_of_support(support, torch.Size((8, 3, 4, 15)))
    assert rows.shape == (4, 15)
    assert rows.data_ptr() == support.data_ptr()
    assert numbers.tolist() == [0, 1, 2, 3] * 24


YES = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    "scores, support, kind, message",
    [
        (torch.zeros(2, 3).int(), YES, TypeError, "scores must be float64.*got int32"),
        ([[0.0]], YES, TypeError, "scores must be a torch tensor, got list"),
        (torch.zeros(2, 3), [[True]], TypeError, "support must be a torch tensor, got list"),
        (torch.zeros(2, 3), YES.float(), TypeError, "support must be bool.*got float32"),
        (torch.zeros(()), YES, ValueError, r"at least one axis"),
        (
            torch.zeros(2, 4),
            YES,
            ValueError,
            r"support of shape \(2, 3\).*of shape \(2, 4\)",
        ),
        (torch.zeros(3), YES, ValueError, "does not broadcast"),
        (torch.zeros(1, 3), YES, ValueError, "does not broadcast"),
        (torch.zeros(2, 3), YES.to("meta"), ValueError, "scores on cpu, support on meta"),
        (torch.zeros(2, 3).to("meta"), YES.to("meta"), ValueError, "CUDA device or the CPU"),
    ],
)
def test_wrong_input_is_named_before_any_launch(scores, support, kind, message):
    with pytest.raises(kind, match=message):
        masked_softmax(scores, support)


def test_cpu_tensors_without_the_interpreter_are_told_how_to_get_it(monkeypatch):
    from attnlib.kernels import launch

    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before triton"):
        masked_softmax(torch.zeros(2, 3), YES)


def test_second_derivative_is_refused():
    scores, support = draw(2, 5)
    weights = masked_softmax(scores, support)
    (gradient,) = torch.autograd.grad(weights.square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
