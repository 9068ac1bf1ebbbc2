"""The weights of chapter 2.1: numbers by hand, what n counts, what the papers' identities say."""

import math

import pytest
import torch

from attnlib import (
    attend,
    context_broadcasting,
    relu_attention,
    reweighted_softplus_attention,
    sigmoid_attention,
    signed_attention,
    softplus_attention,
    squared_relu_attention,
    uniform_attention,
)
from attnlib.models.context_broadcasting import broadcast_context
from attnlib.models.language import DecoderLM
from attnlib.models.vision import VisionTransformer
from attnlib.score.cosine import cosine
from attnlib.support import window
from attnlib.weight.rectified import rectified, squared_rectified
from attnlib.weight.sigmoid import sigmoid
from attnlib.weight.signed import signed
from attnlib.weight.softmax import softmax
from attnlib.weight.softplus import (
    length_scaled_softmax,
    length_scaled_softplus,
    reweighted,
    reweighted_softplus,
    softplus,
)

WEIGHTS = (
    sigmoid,
    rectified,
    squared_rectified,
    signed,
    softplus,
    length_scaled_softmax,
    length_scaled_softplus,
    reweighted_softplus,
)
SUM_TO_ONE = (softplus, length_scaled_softmax, length_scaled_softplus, reweighted_softplus)
OPERATORS = (
    sigmoid_attention,
    relu_attention,
    squared_relu_attention,
    signed_attention,
    softplus_attention,
    reweighted_softplus_attention,
    uniform_attention,
)


def row(*numbers):
    scores = torch.tensor([numbers], dtype=torch.float64)
    return scores, torch.ones_like(scores, dtype=torch.bool)


def scores_and_support(size=1.0, dtype=torch.float64, seed=0):
    """Random scores up to `size`, with a support in which row 0 is empty and others differ."""
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * torch.rand(3, 6, 8, generator=generator).double() - 1) * size
    support = torch.rand(3, 6, 8, generator=generator) < 0.6
    support[:, 0] = False
    support[:, 1:, 0] = True
    return scores.to(dtype), support


def draw(queries, keys, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = (queries, width), (keys, width), (keys, 3)
    return [torch.randn(2, 2, *s, generator=generator).to(dtype).requires_grad_() for s in shapes]


LOG = math.log
BY_HAND = [
    # sigmoid(log a - log n) = a / (a + n)
    (sigmoid, (0.0, LOG(3), LOG(6)), (1 / 4, 1 / 2, 2 / 3)),
    (rectified, (-1.0, 0.0, 1.0, 2.0), (0, 0, 1 / 4, 1 / 2)),
    (squared_rectified, (-1.0, 0.0, 1.0, 2.0), (0, 0, 1 / 4, 1)),
    # exp|s| = 1, 2, 3, of which the last is taken away
    (signed, (0.0, LOG(2), -LOG(3)), (0, 1 / 3, -1 / 2)),
    # log(1 + e^s) = log 2, log 4, log 8
    (softplus, (0.0, LOG(3), LOG(7)), (1 / 6, 2 / 6, 3 / 6)),
    # n^s with n = 4
    (length_scaled_softmax, (0.0, 0.0, 0.5, 1.0), (1 / 8, 1 / 8, 2 / 8, 4 / 8)),
    # log(1 + 3^s) with n = 3: log 2, log 4, log 2
    (length_scaled_softplus, (0.0, 1.0, 0.0), (1 / 4, 1 / 2, 1 / 4)),
]


@pytest.mark.parametrize(
    ("weight", "scores", "wanted"), BY_HAND, ids=lambda x: getattr(x, "__name__", str(x)[:24])
)
def test_weights_of_a_row_by_hand(weight, scores, wanted):
    got = weight(*row(*scores))[0]
    assert torch.allclose(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-13, atol=0)


def test_sharpening_by_hand():
    weights, support = row(0.1, 0.2, 0.3, 0.4)
    # 4 w - 1 = -0.6, -0.2, 0.2, 0.6: the square of what is above the mean is 1 to 9
    got = reweighted(weights, support, power=2)
    wanted = torch.tensor([[0, 0, 0.1, 0.9]], dtype=torch.float64)
    assert torch.allclose(got, wanted, rtol=1e-13, atol=0)
    # three keys have no offset, unless asked: 0.2^2 to 0.3^2 to 0.5^2
    got = reweighted(*row(0.2, 0.3, 0.5), power=2)
    wanted = torch.tensor([[4, 9, 25]], dtype=torch.float64) / 38
    assert torch.allclose(got, wanted, rtol=1e-13, atol=0)
    got = reweighted(*row(0.2, 0.3, 0.5), power=2, first_rows=2)
    assert torch.allclose(got, torch.tensor([[0.0, 0, 1]], dtype=torch.float64))


def test_sharpening_keeps_a_row_in_which_nothing_stands_out():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weights = torch.full((1, 7), 1 / 7, dtype=dtype)
        got = reweighted(weights, torch.ones(1, 7, dtype=torch.bool))
        assert torch.equal(got, weights)


def test_sharpening_with_a_high_power_points_at_the_maximum():
    weights, support = row(0.2, 0.3, 0.1, 0.4)
    for power in (15.0, 1e3, 1e6):
        got = reweighted(weights, support, power=power)
        assert got.sum().item() == pytest.approx(1)
        assert got[0, 3].item() == pytest.approx(1, abs=3.0**-power + 1e-15)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_outside_the_support_and_without_keys_there_is_no_weight(weight):
    scores, support = scores_and_support()
    weights = weight(scores, support)
    assert not weights[~support].any()
    assert not weights[:, 0].any()
    assert weights[:, 1:].abs().sum(-1).gt(0).float().mean() > 0.8


@pytest.mark.parametrize("weight", WEIGHTS)
def test_what_is_hidden_changes_nothing(weight):
    scores, support = scores_and_support()
    changed = scores.masked_fill(~support, 1e4)
    assert torch.equal(weight(scores, support), weight(changed, support))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_row_padded_with_hidden_keys_keeps_its_weights(weight):
    scores, _ = scores_and_support()
    every = torch.ones_like(scores, dtype=torch.bool)
    wide = torch.cat((scores, torch.full_like(scores, 3.0)), -1)
    seen = torch.cat((every, ~every), -1)
    got = weight(wide, seen)[..., :8]
    assert torch.allclose(got, weight(scores, every), rtol=1e-13, atol=0)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_weights_and_gradients_are_finite_up_to_1e4(weight, dtype):
    size = 100.0 if weight is squared_rectified else 1e4
    for low, high in ((-1, 1), (1, 1), (-1, -1)):
        scores, support = scores_and_support(size, dtype)
        scores = torch.where(scores < 0, low * scores.abs(), high * scores.abs()).requires_grad_()
        weights = weight(scores, support)
        (slope,) = torch.autograd.grad((weights * torch.arange(8).to(dtype)).sum(), scores)
        assert weights.dtype == dtype
        assert weights.isfinite().all()
        assert slope.isfinite().all()
        if weight in SUM_TO_ONE:
            sums = weights[:, 1:].double().sum(-1)
            assert torch.allclose(sums, torch.ones_like(sums), atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_gradients_of_the_weights(weight):
    scores, support = scores_and_support()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: weight(s, support), scores)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_padding_prefix_and_streaming_agree_on_n(operator):
    query, key, value = (x.detach() for x in draw(9, 9))
    whole = operator(query, key, value, is_causal=True)
    prefix = operator(*(x[..., :5, :] for x in (query, key, value)), is_causal=True)
    assert torch.allclose(whole[..., :5, :], prefix, atol=1e-13)
    for t in range(9):
        token = operator(
            query[..., t : t + 1, :], key, value, is_causal=True, query_offset=t, chunk=2
        )
        assert torch.allclose(token, whole[..., t : t + 1, :], atol=1e-13)
    mask = (torch.arange(9) < 6).expand(2, 1, 1, 9)
    padded = operator(query, key, value, attn_mask=mask)
    cut = operator(query, key[..., :6, :], value[..., :6, :])
    assert torch.allclose(padded, cut, atol=1e-13)


@pytest.mark.parametrize("keys", [1, 2, 100])
def test_sigmoid_of_equal_scores_sums_to_n_over_n_plus_1(keys):
    weights = sigmoid(*row(*[0.0] * keys))
    assert weights.sum().item() == pytest.approx(keys / (keys + 1))


def test_sigmoid_with_a_bias_is_the_constant_of_the_paper():
    scores, support = scores_and_support()
    for bias in (0, -2.5, 3.0):
        wanted = torch.where(support, 1 / (1 + torch.exp(-(scores + bias))), 0.0)
        assert torch.allclose(sigmoid(scores, support, bias=bias), wanted, rtol=1e-13, atol=0)
    query, key, value = draw(5, 7)
    wanted = torch.sigmoid(query @ key.mT / 2 + 0.5) @ value
    got = sigmoid_attention(query, key, value, bias=0.5, chunk=3)
    assert torch.allclose(got, wanted, atol=1e-13)


def test_without_the_bias_the_read_grows_with_the_length_and_with_it_it_does_not():
    generator = torch.Generator().manual_seed(0)
    sizes = {None: [], 0.0: []}
    for length in (64, 1024):
        query, key = torch.randn(2, 1, length, 16, generator=generator).double() * 0.1
        value = torch.ones(1, length, 1, dtype=torch.float64)
        for bias, reads in sizes.items():
            reads.append(sigmoid_attention(query, key, value, bias=bias).mean().item())
    assert sizes[0.0][1] / sizes[0.0][0] == pytest.approx(16, rel=0.05)
    assert sizes[None][1] / sizes[None][0] == pytest.approx(1, rel=0.05)


def test_sigmoid_weights_move_alone_and_softmax_weights_do_not():
    scores, support = row(0.3, -0.7, 1.1)
    alone = torch.autograd.functional.jacobian(lambda s: sigmoid(s, support)[0], scores)[:, 0]
    p = sigmoid(scores, support)[0]
    assert torch.allclose(alone, torch.diag(p * (1 - p)), atol=1e-14)
    together = torch.autograd.functional.jacobian(lambda s: softmax(s, support)[0], scores)[:, 0]
    assert together[0, 1] < -0.01


def test_signed_is_the_softmax_of_the_sizes_with_signs():
    scores, support = scores_and_support(5.0)
    weights = signed(scores, support)
    assert torch.equal(weights.abs(), softmax(scores.abs(), support))
    sizes = weights[:, 1:].abs().sum(-1)
    assert torch.allclose(sizes, torch.ones_like(sizes), rtol=1e-13)
    assert (weights.sum(-1).abs() <= 1 + 1e-12).all()
    assert torch.equal(signed(-scores, support), -weights)


def test_signed_gradient_by_its_formula():
    scores, support = row(0.3, -0.7, 1.1)
    got = torch.autograd.functional.jacobian(lambda s: signed(s, support)[0], scores)[:, 0]
    a, sign = softmax(scores.abs(), support)[0], scores[0].sign()
    wanted = torch.outer(sign, sign) * (torch.diag(a) - torch.outer(a, a))
    assert torch.allclose(got, wanted, atol=1e-14)


def test_signed_weights_read_a_difference_that_no_mean_reads():
    query = torch.tensor([[20.0]], dtype=torch.float64)
    key = torch.tensor([[1.0], [-1.0], [0.0]], dtype=torch.float64)
    value = torch.tensor([[5.0], [3.0], [100.0]], dtype=torch.float64)
    read = signed_attention(query, key, value, scale=1.0)
    assert read.item() == pytest.approx((5 - 3) / 2, abs=1e-6)
    assert not 3 <= read.item() <= 100


def test_softplus_is_softmax_far_below_zero_and_ratios_far_above():
    scores, support = row(-30.0, -31.0, -33.0)
    assert torch.allclose(softplus(scores, support), softmax(scores, support), rtol=1e-12)
    weights = softplus(*row(100.0, 300.0))
    assert torch.allclose(weights, torch.tensor([[0.25, 0.75]], dtype=torch.float64), rtol=1e-12)


def test_length_scaled_softmax_keeps_one_key_at_any_length_if_it_scores_more_than_one_above():
    for above, wanted in ((0.5, 1 / (1 + 999 / 1000**0.5)), (2.0, 1 / (1 + 999 / 1000**2))):
        weights = length_scaled_softmax(*row(above, *[0.0] * 999))
        assert weights[0, 0].item() == pytest.approx(wanted)


def test_softplus_attention_is_the_equation_of_the_paper():
    query, key, value = draw(6, 6)
    angle = (query / query.norm(dim=-1, keepdim=True)) @ (key / key.norm(dim=-1, keepdim=True)).mT
    count = torch.arange(1, 7, dtype=torch.float64)[:, None]
    weights = torch.log1p(torch.exp(LOG(4) * count.log() * angle)).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    assert torch.allclose(softplus_attention(query, key, value, is_causal=True), weights @ value)
    offset = torch.ones(6, 1, dtype=torch.float64)
    offset[:3] = 0
    sharp = torch.relu(weights * count - offset).pow(3).tril()
    sharp = sharp / sharp.sum(-1, keepdim=True)
    got = reweighted_softplus_attention(query, key, value, is_causal=True, power=3)
    assert torch.allclose(got, sharp @ value)


def test_a_cosine_score_forgets_lengths():
    query, key, _ = draw(5, 7)
    assert torch.allclose(cosine(query, key), cosine(3 * query, key / 7), atol=1e-14)
    assert (
        cosine(key, key, scale=2.0).diagonal(dim1=-2, dim2=-1).allclose(torch.tensor(2.0).double())
    )
    assert not cosine(0 * query, key).any()
    with pytest.raises(ValueError, match="query must have a width of at least 2"):
        cosine(query[..., :1], key[..., :1])


def test_uniform_attention_is_the_mean_of_what_a_row_sees():
    query, key, value = draw(7, 7)
    got = uniform_attention(query, key, value, is_causal=True, chunk=3)
    wanted = value.cumsum(-2) / torch.arange(1, 8)[:, None]
    assert torch.allclose(got, wanted, atol=1e-13)
    softmax_at_zero = attend(0 * query, key, value, support=window(3))
    assert torch.allclose(uniform_attention(query, key, value, support=window(3)), softmax_at_zero)


def test_context_broadcasting_is_a_constant_matrix():
    x = draw(6, 6)[2]
    matrix = (torch.eye(6) + torch.full((6, 6), 1 / 6)).double() / 2
    assert torch.allclose(context_broadcasting(x), matrix @ x, atol=1e-14)
    head = (x + uniform_attention(x, x, x)) / 2
    assert torch.allclose(context_broadcasting(x), head, atol=1e-14)
    present = (torch.arange(6) < 4).expand(2, 2, 6)
    got = context_broadcasting(x, present)
    assert torch.allclose(got[..., :4, :], context_broadcasting(x[..., :4, :]), atol=1e-14)
    assert not got[..., 4:, :].any()


def test_context_broadcasting_stands_at_the_end_of_every_perceptron():
    model = VisionTransformer(4, 2, 3, layers=2)
    x = torch.randn(2, 5, 64)
    before = [block.perceptron(x) for block in model.blocks]
    assert broadcast_context(model) is model
    for block, old in zip(model.blocks, before, strict=True):
        assert torch.allclose(block.perceptron(x), (old + old.mean(1, keepdim=True)) / 2)
    with pytest.raises(ValueError, match="must not be causal"):
        broadcast_context(DecoderLM(7, width=8, heads=1, layers=1))
    with pytest.raises(ValueError, match="must have blocks of attnlib"):
        broadcast_context(torch.nn.Linear(2, 2))


X = torch.ones(1, 3, 4)
WRONG = {
    "bias must be a number, got Tensor": lambda: sigmoid(X, X > 0, bias=torch.zeros(1)),
    "bias must be a number, got bool": lambda: sigmoid_attention(X, X, X, bias=True),
    "bias must be a finite number, got nan": lambda: sigmoid_attention(X, X, X, bias=math.nan),
    "power must be a number, got str": lambda: reweighted_softplus_attention(X, X, X, power="3"),
    "power must be at least 1 and finite, got 0.5": lambda: reweighted(X, X > 0, power=0.5),
    "offset must be at least 0 and finite, got -1": lambda: reweighted(X, X > 0, offset=-1),
    "offset must be a number, got NoneType": lambda: reweighted(X, X > 0, offset=None),
    "first_rows must be an int, got float": lambda: reweighted_softplus(X, X > 0, first_rows=3.0),
    "chunk must be at least 1, got 0": lambda: relu_attention(X, X, X, chunk=0),
    "present must be a bool tensor of shape .1, 3.": lambda: context_broadcasting(X, X > 0),
    "x must be a floating-point tensor": lambda: context_broadcasting(X.int()),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_named(message):
    with pytest.raises((TypeError, ValueError), match=message):
        WRONG[message]()
