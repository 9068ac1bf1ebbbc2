"""Entmax weights: worked numbers, two algorithms that agree, optimality, gradients, range."""

import itertools
import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from attnlib.atlas import Promises
from attnlib.conformance.report import Broken
from attnlib.conformance.symmetry_checks import check_positions_tag
from attnlib.conformance.trial import Trial, draw
from attnlib.models import DecoderLM, MultiHeadAttention
from attnlib.models.entmax_layer import EntmaxAttention
from attnlib.weight.entmax import bent_exp, entmax, entmax15, sparsemax
from attnlib.weight.entmax_attention import (
    dense_entmax_attention,
    entmax15_attention,
    entmax_attention,
    sparsemax_attention,
)
from attnlib.weight.softmax import softmax

ALPHAS = (1.0, 1.0001, 1.1, 1.5, 1.75, 2.0)
WEIGHTS = {
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    **{f"alpha={a}": lambda s, m, a=a: entmax(s, m, alpha=a) for a in ALPHAS},
}


def scores_and_support(spread=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    scores = spread * torch.randn(2, 3, 6, 9, generator=generator, dtype=torch.float64)
    support = torch.rand(2, 3, 6, 9, generator=generator) < 0.8
    support[0, 0, 0] = False
    support[0, 0, 1] = torch.arange(9) == 4
    return scores.to(dtype), support


def all_keys(scores):
    return torch.ones_like(scores, dtype=torch.bool)


def row(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_sparsemax_by_hand():
    scores = row(1.0, 0.8, 0.1)
    # Two keys have weight: 1 + 2 * 0.8 > 1.8 but 1 + 3 * 0.1 < 1.9, so tau = (1.8 - 1) / 2.
    assert torch.allclose(sparsemax(scores, all_keys(scores)), row(0.6, 0.4, 0.0))


def test_sparsemax_equals_exact_arithmetic():
    numbers = [Fraction(n, 8) for n in (3, 5, -2, 5, 4)]
    ranked = sorted(numbers, reverse=True)
    taus = [
        (sum(ranked[:k]) - 1) / k for k in range(1, 6) if 1 + k * ranked[k - 1] > sum(ranked[:k])
    ]
    wanted = [max(number - taus[-1], Fraction(0)) for number in numbers]
    assert sum(wanted) == 1
    scores = row(*map(float, numbers))
    assert torch.allclose(sparsemax(scores, all_keys(scores)), row(*map(float, wanted)))


def test_entmax15_by_hand():
    # With s / 2 = (0.6, 0.2, -0.9) and tau = -0.2 the squares are 0.64 + 0.16 + 0 ... too little;
    # the two first with m = 0.4, d = 0.08 give tau = 0.4 - sqrt(0.46).
    scores = row(1.2, 0.4, -1.8)
    tau = 0.4 - math.sqrt(0.46)
    wanted = row((0.6 - tau) ** 2, (0.2 - tau) ** 2, 0.0)
    assert wanted.sum().item() == pytest.approx(1.0)
    assert torch.allclose(entmax15(scores, all_keys(scores)), wanted)


def test_sparsemax_of_two_keys_is_a_clipped_ramp():
    difference = torch.linspace(-3, 3, 25, dtype=torch.float64)
    scores = torch.stack((difference, torch.zeros_like(difference)), dim=-1)
    wanted = ((difference + 1) / 2).clamp(0, 1)
    assert torch.allclose(sparsemax(scores, all_keys(scores))[:, 0], wanted)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 5.0, 300.0])
@pytest.mark.parametrize(("exact", "alpha"), [(sparsemax, 2.0), (entmax15, 1.5)])
def test_bisection_and_sorting_agree(exact, alpha, spread):
    scores, support = scores_and_support(spread)
    assert (entmax(scores, support, alpha=alpha) - exact(scores, support)).abs().max() < 1e-10


def test_many_keys_agree_too():
    scores = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for exact, alpha in ((sparsemax, 2.0), (entmax15, 1.5)):
        support = all_keys(scores)
        assert (entmax(scores, support, alpha=alpha) - exact(scores, support)).abs().max() < 1e-10


def test_alpha_one_is_softmax_and_its_limit():
    scores, support = scores_and_support()
    wanted = softmax(scores, support)
    assert torch.allclose(entmax(scores, support, alpha=1.0), wanted, atol=1e-15)
    for gap in (1e-5, 1e-9, 1e-15):
        assert (entmax(scores, support, alpha=1 + gap) - wanted).abs().max() < 1e-4
    single = entmax(scores.float(), support, alpha=1 + 1e-6)
    assert (single - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("name", WEIGHTS)
def test_rows_sum_to_one_and_zeros_are_exact(name):
    scores, support = scores_and_support(spread=6.0)
    got = WEIGHTS[name](scores, support)
    sums = support.any(-1).double()
    assert torch.allclose(got.sum(-1), sums, atol=1e-12)
    assert not got[~support].any() and (got >= 0).all()
    assert got[0, 0, 1, 4] == 1
    if name != "alpha=1.0" and name != "alpha=1.0001":
        assert (got[support] == 0).any()


@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.75, 2.0])
def test_the_weights_maximize_what_they_are_defined_to_maximize(alpha):
    # Optimal on the simplex: p.s + H(p) has the same slope at all keys with weight, none greater.
    scores, _ = scores_and_support()
    got = entmax(scores, all_keys(scores), alpha=alpha)
    slope = scores - got ** (alpha - 1) / (alpha - 1)
    inside = slope.masked_fill(got == 0, torch.nan)
    level = inside.nanmean(-1, keepdim=True)
    assert ((inside - level).nan_to_num().abs() < 1e-9).all()
    assert (slope <= level + 1e-9).all()


def test_the_support_shrinks_as_alpha_grows():
    scores, support = scores_and_support()
    kept = [(entmax(scores, support, alpha=alpha) > 0).sum(-1) for alpha in ALPHAS[1:]]
    assert all((more >= fewer).all() for more, fewer in itertools.pairwise(kept))
    assert kept[0].sum() > 2 * kept[-1].sum()


@pytest.mark.parametrize("name", WEIGHTS)
def test_adding_a_constant_to_a_row_changes_nothing(name):
    scores, support = scores_and_support()
    moved = scores + torch.arange(6, dtype=torch.float64)[:, None] * 50
    assert torch.allclose(WEIGHTS[name](scores, support), WEIGHTS[name](moved, support))


@pytest.mark.parametrize("name", WEIGHTS)
def test_higher_scores_have_no_less_weight_and_order_does_not_matter(name):
    scores, _ = scores_and_support()
    order = scores.argsort(-1)
    got = WEIGHTS[name](scores, all_keys(scores))
    ranked = got.gather(-1, order)
    assert (ranked.diff(dim=-1) >= 0).all()
    again = WEIGHTS[name](scores.gather(-1, order), all_keys(scores))
    assert torch.allclose(again, ranked)


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_lies_outside_the_support_changes_nothing(name):
    scores, support = scores_and_support()
    for other in (1e4, -1e4, torch.finfo(torch.float64).max):
        changed = scores.masked_fill(~support, other)
        assert torch.equal(WEIGHTS[name](scores, support), WEIGHTS[name](changed, support))
    cut = WEIGHTS[name](scores[..., :7], all_keys(scores[..., :7]))
    wide = WEIGHTS[name](scores, all_keys(scores) & (torch.arange(9) < 7))
    assert torch.allclose(cut, wide[..., :7], atol=1e-14)


@pytest.mark.parametrize("name", WEIGHTS)
def test_gradients_of_the_scores_agree_with_finite_differences(name):
    scores, support = scores_and_support()
    scores, support = scores[0, 0, :4], support[0, 0, :4]
    assert gradcheck(lambda s: WEIGHTS[name](s, support), scores.requires_grad_())


def test_gradients_of_alpha_agree_with_finite_differences():
    scores, support = scores_and_support()
    alpha = torch.tensor([1.002, 1.4, 1.9], dtype=torch.float64)[:, None, None]
    scores, support = scores[0, :, :3], support[0, :, :3]
    inputs = (scores.requires_grad_(), alpha.requires_grad_())
    assert gradcheck(lambda s, a: entmax(s, support, alpha=a), inputs)


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-9, 1 + 1e-4, 1.3, 1.8])
def test_the_slope_of_alpha_is_the_papers_formula(alpha):
    scores = row(0.3, -1.1, 0.9, 0.2)
    given = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.functional.jacobian(
        lambda a: entmax(scores, all_keys(scores), alpha=a), (given,)
    )
    p = entmax(scores, all_keys(scores), alpha=alpha)
    if alpha < 1.001:  # their formula at alpha = 1
        h = -p * p.log()
        wanted, allowed = (h * p.log() - p * (h * p.log()).sum()) / 2, 1e-3
    else:
        h = -torch.xlogy(p, p)
        tilde = torch.where(p > 0, p ** (2 - alpha), 0.0)
        tilde = tilde / tilde.sum()
        wanted = (p - tilde) / (alpha - 1) ** 2 + (h - tilde * h.sum()) / (alpha - 1)
        allowed = 1e-10
    assert (got - wanted).abs().max() < allowed
    assert got.sum().abs() < 1e-12


def test_the_slope_of_alpha_keeps_its_digits_near_softmax_in_single_precision():
    scores = row(0.3, -1.1, 0.9, 0.2)
    slopes = []
    for dtype in (torch.float32, torch.float64):
        alpha = torch.tensor(1 + 1e-5, dtype=dtype, requires_grad=True)
        read = entmax(scores.to(dtype), all_keys(scores), alpha=alpha) @ row(1, 2, 3, 4).to(dtype)
        slopes.append(torch.autograd.grad(read, alpha)[0].item())
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)


def test_a_dropped_key_gets_no_gradient():
    scores = row(1.0, 0.8, -3.0).requires_grad_()
    (sparsemax(scores, all_keys(scores)) @ row(1, 2, 5)).backward()
    assert torch.equal(scores.grad, row(-0.5, 0.5, 0.0))


def test_a_second_gradient_is_refused_instead_of_being_wrong():
    scores = row(1.0, 0.8, -3.0).requires_grad_()
    read = (entmax(scores, all_keys(scores)) ** 2).sum()
    (slope,) = torch.autograd.grad(read, scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_huge_scores_stay_finite_in_every_dtype(name, dtype):
    scores, support = scores_and_support(spread=1e4 / 4, dtype=dtype)
    scores[1, 1] = torch.tensor([1e4, -1e4, 1e4] * 3).to(dtype)
    scores.requires_grad_()
    got = WEIGHTS[name](scores, support)
    assert got.dtype == dtype and got.isfinite().all()
    assert (got.float().sum(-1) - support.any(-1).float()).abs().max() < 1e-2
    got.float().square().sum().backward()
    assert scores.grad.dtype == dtype and scores.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    scores, support = scores_and_support(dtype=dtype)
    for weight in WEIGHTS.values():
        assert torch.equal(weight(scores, support), weight(scores.float(), support).to(dtype))


def test_no_keys_and_one_key():
    none = torch.zeros(2, 3, 0)
    for weight in WEIGHTS.values():
        assert weight(none, all_keys(none)).shape == (2, 3, 0)
        one = torch.full((2, 3, 1), -7.0)
        assert torch.equal(weight(one, all_keys(one)), torch.ones(2, 3, 1))
        equal = torch.zeros(4)
        assert torch.allclose(weight(equal, all_keys(equal)), torch.full((4,), 0.25))


def test_every_head_may_have_its_own_alpha():
    scores, support = scores_and_support()
    alpha = torch.tensor([1.0, 1.5, 2.0])
    together = entmax(scores, support, alpha=alpha[:, None, None])
    for head, value in enumerate(alpha.tolist()):
        alone = entmax(scores[:, head], support[:, head], alpha=value)
        assert torch.equal(together[:, head], alone)


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (0.9, ValueError, r"alpha must lie from 1 \(softmax\) to 2 \(sparsemax\), got 0.9"),
        (2.5, ValueError, "alpha must lie from 1"),
        (math.nan, ValueError, "alpha must lie from 1"),
        (torch.tensor([1.5, 3.0])[:, None, None], ValueError, r"got 1.5 \.\.\. 3"),
        (torch.tensor([1.5, math.nan])[:, None, None], ValueError, "alpha must lie from 1"),
        (torch.full((2, 4), 1.5), ValueError, r"alpha must broadcast to \(2, 3, 1\)"),
        (torch.ones(1, dtype=torch.int64), TypeError, "alpha must be a floating-point tensor"),
        ("1.5", TypeError, "alpha must be a number or a tensor, got str"),
        (True, TypeError, "alpha must be a number or a tensor, got bool"),
    ],
)
def test_a_bad_alpha_is_named(alpha, error, message):
    scores = torch.zeros(2, 3, 4)
    with pytest.raises(error, match=message):
        entmax(scores, all_keys(scores), alpha=alpha)


def test_the_bent_exponential_lies_between_the_exponential_and_the_ramp():
    x = torch.linspace(-3, 0, 31, dtype=torch.float64)
    assert torch.allclose(bent_exp(x, row(0.0)), x.exp())
    assert torch.allclose(bent_exp(x, row(1.0)), (1 + x).clamp(min=0))
    middle = bent_exp(x, row(0.5))
    assert torch.allclose(middle, (1 + x / 2).clamp(min=0) ** 2)
    assert ((1 + x).clamp(min=0) <= middle).all() and (middle <= x.exp()).all()


def test_the_operators_use_these_weights():
    query, key, value = draw(5, 5)
    scores = query @ key.mT / 2
    support = all_keys(scores).tril()
    for operator, weight in (
        (sparsemax_attention, sparsemax),
        (entmax15_attention, entmax15),
        (entmax_attention, entmax),
    ):
        wanted = weight(scores, support) @ value
        assert torch.allclose(operator(query, key, value, is_causal=True), wanted)
    loose = entmax_attention(query, key, value, alpha=1.0)
    assert torch.allclose(loose, torch.softmax(scores, -1) @ value)


def test_rows_in_blocks_give_the_same_read_and_the_same_gradients():
    query, key, value = draw(9, 11)
    alpha = torch.tensor([1.2, 1.8], dtype=torch.float64)[:, None, None]
    inputs = [tensor.requires_grad_() for tensor in (query, key, value, alpha)]
    results = []
    for attention in (dense_entmax_attention, partial(entmax_attention, chunk=4)):
        read = attention(query, key, value, alpha=alpha, is_causal=True, query_offset=1)
        results.append((read, *torch.autograd.grad(read.square().sum(), inputs)))
    for got, wanted in zip(*results, strict=True):
        assert torch.allclose(got, wanted, atol=1e-12)
    with pytest.raises(ValueError, match="alpha must be the same for all queries of a head"):
        entmax_attention(query, key, value, alpha=torch.full((2, 9, 1), 1.5))


def test_a_layer_learns_one_alpha_a_head():
    layer = MultiHeadAttention(8, 2, operator=EntmaxAttention(heads=2), is_causal=True)
    assert torch.equal(layer.operator.alphas(), torch.full((2,), 1.5))
    with torch.no_grad():
        layer.operator.sparsity.copy_(torch.tensor([-50.0, 50.0]))
    x = 3 * torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    out, weights = layer(x, return_weights=True)
    assert (weights[0, 0] > 0).sum() == 21 and (weights[0, 1] > 0).sum() < 21
    out.square().sum().backward()
    assert layer.operator.sparsity.grad.isfinite().all()


def test_the_layers_of_a_model_learn_their_own_alphas_and_train():
    model = DecoderLM(5, width=8, heads=2, layers=2, operator=EntmaxAttention(heads=2))
    names = [name for name, _ in model.named_parameters() if "sparsity" in name]
    assert len(names) == 2
    tokens = torch.randint(5, (4, 8), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    loss.backward()
    first, second = (dict(model.named_parameters())[name] for name in names)
    assert first is not second and (first.grad != 0).all() and (second.grad != 0).all()


def test_a_layer_names_a_wrong_number_of_heads():
    query, key, value = draw(3, 3)
    with pytest.raises(ValueError, match="query must have the 3 heads of this layer"):
        EntmaxAttention(heads=3)(query, key, value)
    with pytest.raises(ValueError, match="heads must be at least 1"):
        EntmaxAttention(heads=0)


def test_exact_zeros_are_soft_but_zeros_that_depend_on_the_place_are_not():
    check_positions_tag(Trial(sparsemax_attention, Promises(), positions="soft"))

    def skips_the_first_key(query, key, value):
        mask = torch.arange(key.shape[-2]) > 0
        return sparsemax_attention(query, key, value, attn_mask=mask.expand(query.shape[-2], -1))

    with pytest.raises(Broken, match="tagged soft"):
        check_positions_tag(Trial(skips_the_first_key, Promises(), positions="soft"))


@pytest.mark.parametrize("weight", [sparsemax, entmax15])
def test_a_row_with_a_score_that_is_no_number_spoils_no_other_row(weight):
    scores = torch.tensor([[1.0, 2.0, 0.0], [float("nan"), 1.0, 0.0]]).double()
    weights = weight(scores, torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(weights[0], weight(scores[:1], torch.ones(1, 3, dtype=torch.bool))[0])
    assert weights[1].isnan().any()
