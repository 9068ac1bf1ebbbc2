"""Each feature map stands for a function of query and key, and each operator keeps its equation."""

import itertools
import math

import pytest
import torch

import attnlib
from attnlib import attend, feature_map_attention
from attnlib.read.fastmax_attention import dense_fastmax_attention
from attnlib.score.kernels import standardized_product, truncated_exponential
from attnlib.weight.feature_maps import (
    HedgehogMap,
    elu_plus_one,
    exponential,
    hedgehog,
    hedgehog_exponential,
    matched_exponents,
    orthogonal_directions,
    positive_random_features,
    relu,
    standardized,
    standardized_polynomial,
    taylor,
    taylor_features,
    taylor_state_size,
)
from attnlib.weight.feature_maps.log_normal import OFFSET, SLOPE, log_variance
from attnlib.weight.feature_maps.taylor import monomials


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def close(got, wanted, atol=1e-12):
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


# Maps of one number at a time


def test_maps_of_one_number_by_hand():
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    close(elu_plus_one(x), torch.tensor([math.exp(-1), 1.0, 3.0], dtype=torch.float64))
    close(relu(x), torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
    close(exponential(x), torch.tensor([math.exp(-1), 1.0, math.exp(2)], dtype=torch.float64))


def test_elu_plus_one_has_finite_gradients_for_large_numbers():
    x = torch.tensor([-1e4, 1e4], requires_grad=True)
    elu_plus_one(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0]


# The exponential expanded


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_taylor_features_multiply_to_the_truncated_exponential(terms, scale):
    query, key = normal(4, 6), normal(7, 6, seed=1)
    phi = taylor(terms, scale)
    product = query @ key.mT * (6**-0.5 if scale is None else scale)
    wanted = sum(product**power / math.factorial(power) for power in range(terms))
    close(phi(query) @ phi(key).mT, wanted)
    close(truncated_exponential(terms)(query, key, scale), wanted)


@pytest.mark.parametrize(("width", "terms"), [(1, 4), (5, 1), (5, 4), (8, 3)])
def test_the_basis_is_as_small_as_counted(width, terms):
    assert taylor(terms)(normal(2, width)).shape[-1] == taylor_features(width, terms)
    # The monomials of degree below `terms` in `width` variables: C(width + terms - 1, width).
    assert taylor_features(width, terms) == math.comb(width + terms - 1, width)


def test_the_state_is_far_smaller_than_that_of_all_products():
    assert taylor_state_size(8, 8, 4) == 165 * 9
    assert sum(8**power for power in range(4)) * 9 == 585 * 9


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_multiplicities_add_up_to_all_products(degree):
    width, sizes = 4, {(): 1.0}
    for power in range(1, degree + 1):
        start, last, count = monomials(width, power)
        products = list(sizes)
        sizes = {
            (*products[s], c): sizes[products[s]] / n
            for s, c, n in zip(start.tolist(), last.tolist(), count.tolist(), strict=True)
        }
    # p! / prod n_c! products have the same channels; over all sorted ones they are D^p.
    assert math.factorial(degree) * sum(sizes.values()) == pytest.approx(width**degree)


def test_an_odd_number_of_terms_is_positive_and_an_even_one_is_not():
    scores = torch.linspace(-20, 20, 401, dtype=torch.float64)
    query, key = scores[:, None], torch.ones(1, 1, dtype=torch.float64)
    for terms in (1, 3, 5, 7):
        assert (truncated_exponential(terms)(query, key) > 0).all()
    for terms in (2, 4, 6):
        assert (truncated_exponential(terms)(query, key) < 0).any()
    four = truncated_exponential(4)(query, key)[:, 0]
    assert scores[four < 0].max() == pytest.approx(-1.6, abs=0.05)


def test_taylor_attention_comes_nearer_to_softmax_with_every_term():
    inputs = [normal(1, 20, 4, seed=seed) * 0.5 for seed in range(3)]
    wanted = attend(*inputs)
    errors = [
        (attnlib.taylor_attention(*inputs, terms=terms) - wanted).abs().max().item()
        for terms in (1, 2, 3, 4, 5)
    ]
    assert all(next_one < 0.6 * one for one, next_one in itertools.pairwise(errors))


def test_an_even_number_of_terms_refuses_rows_whose_sum_is_negative():
    query, key = torch.full((1, 4), 3.0), torch.full((2, 4), -3.0)
    with pytest.raises(ValueError, match="negative"):
        attnlib.taylor_attention(query, key, torch.ones(2, 1), terms=4)
    assert attnlib.taylor_attention(query, key, torch.ones(2, 1), terms=3).item() == 1.0


@pytest.mark.parametrize("order", [1, 2, 3])
def test_fast_features_multiply_to_the_polynomial_of_standardized_rows(order):
    query, key = normal(4, 6), 3 + 2 * normal(7, 6, seed=1)
    product = standardized(query) @ standardized(key).mT
    wanted = sum(product**power / math.factorial(power) for power in range(order + 1))
    phi = standardized_polynomial(order)
    close(phi(query) @ phi(key).mT, wanted)
    close(standardized_product(order)(query, key), wanted)


def test_standardized_rows_have_mean_zero_and_length_root_of_the_width():
    x = standardized(5 + 3 * normal(4, 16))
    close(x.sum(-1), torch.zeros(4, dtype=torch.float64), 1e-9)
    close(x.norm(dim=-1), torch.full((4,), 4.0, dtype=torch.float64), 1e-5)
    assert standardized(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_fast_does_not_see_how_long_a_query_is():
    inputs = [normal(1, 9, 8, seed=seed) for seed in range(3)]
    longer = [inputs[0] * 7, inputs[1] * 0.5, inputs[2]]
    close(attnlib.fastmax_attention(*longer), attnlib.fastmax_attention(*inputs), 1e-4)
    close(attnlib.fastmax_attention(*inputs), dense_fastmax_attention(*inputs))


def test_order_one_of_fast_refuses_rows_whose_sum_is_negative():
    query = torch.tensor([[2.0, -1.0, -1.0]])
    with pytest.raises(ValueError, match="negative"):
        attnlib.fastmax_attention(query, -query, torch.ones(1, 1), order=1)


# Random features


def test_directions_of_a_block_are_orthogonal_and_as_long_as_normal_draws():
    rows = orthogonal_directions(8, 20, generator=generator(), dtype=torch.float64)
    assert rows.shape == (20, 8)
    for block in rows.split(8):
        product = block @ block.mT
        close(product, product.diagonal().diag())
    many = orthogonal_directions(8, 8000, generator=generator(), dtype=torch.float64)
    assert many.square().sum(-1).mean().item() == pytest.approx(8, rel=0.05)
    assert many.mean(0).abs().max() < 0.05  # the signs of a QR routine would lean to one side


def test_random_features_are_positive_and_unbiased():
    query, key = normal(3, 4) * 0.5, normal(5, 4, seed=1) * 0.5
    rows = orthogonal_directions(4, 100_000, generator=generator(), dtype=torch.float64)
    phi = positive_random_features(rows)
    assert (phi(query) > 0).all()
    wanted = (query @ key.mT / 2).exp()
    torch.testing.assert_close(phi(query) @ phi(key).mT, wanted, rtol=0.05, atol=0)


def test_orthogonal_directions_estimate_better_than_independent_ones():
    query, key = normal(1, 8) * 0.5, normal(1, 8, seed=1) * 0.5
    wanted = (query @ key.mT / 8**0.5).exp()

    def error(draw_rows):
        return sum(
            (phi(query) @ phi(key).mT - wanted).square().item()
            for phi in (positive_random_features(draw_rows(seed)) for seed in range(1000))
        )

    independent = error(lambda seed: normal(8, 8, seed=seed))
    orthogonal = error(
        lambda seed: orthogonal_directions(8, 8, generator=generator(seed), dtype=torch.float64)
    )
    assert orthogonal < independent


def test_performer_comes_nearer_to_softmax_with_more_features():
    inputs = [normal(1, 30, 8, seed=seed) * 0.5 for seed in range(3)]
    wanted = attend(*inputs)
    errors = [
        (attnlib.performer_attention(*inputs, features=features) - wanted).square().mean().item()
        for features in (16, 256, 4096)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_performer_draws_the_same_directions_for_one_seed_and_leaves_the_global_state():
    inputs, state = [normal(1, 5, 4, seed=seed) for seed in range(3)], torch.get_rng_state()
    first = attnlib.performer_attention(*inputs, seed=3)
    assert torch.equal(first, attnlib.performer_attention(*inputs, seed=3))
    assert not torch.equal(first, attnlib.performer_attention(*inputs, seed=4))
    assert torch.equal(state, torch.get_rng_state())


# Hedgehog


def test_hedgehog_holds_each_direction_and_its_opposite():
    x, matrix, offset = normal(3, 4), normal(2, 4, seed=1), normal(2, seed=2)
    signed = x @ matrix.mT + offset
    wanted = torch.cat((signed, -signed), dim=-1).exp()
    close(hedgehog_exponential(x, matrix, offset), wanted)
    close(hedgehog(x, matrix, offset), wanted / wanted.sum(-1, keepdim=True))


def test_the_divisor_of_a_query_cancels_and_that_of_a_key_does_not():
    query, key, value = normal(6, 4), normal(7, 4, seed=1), normal(7, 2, seed=2)
    matrix = normal(4, 4, seed=3)

    def divided(x):
        return hedgehog(x, matrix)

    def plain(x):
        return hedgehog_exponential(x, matrix)

    both = feature_map_attention(query, key, value, feature_map=divided)
    only_key = feature_map_attention(query, key, value, feature_map=plain, key_feature_map=divided)
    neither = feature_map_attention(query, key, value, feature_map=plain)
    close(both, only_key)
    assert (both - neither).abs().max() > 1e-3


def test_a_hedgehog_map_starts_as_the_identity_and_has_a_matrix_for_each_head():
    one = HedgehogMap(4, heads=2).double()
    x = normal(3, 2, 5, 4)
    close(one(x), hedgehog(x, torch.eye(4, dtype=torch.float64)))
    with torch.no_grad():
        one.matrix[1] *= 2
    close(one(x)[:, 0], hedgehog(x[:, 0], torch.eye(4, dtype=torch.float64)))
    close(one(x)[:, 1], hedgehog(x[:, 1], 2 * torch.eye(4, dtype=torch.float64)))


def test_the_module_reads_what_its_table_of_weights_reads():
    operator = attnlib.HedgehogAttention(4, heads=2).double()
    query, key, value = (normal(1, 2, 9, 4, seed=seed) for seed in range(3))
    weights = operator.weights(query, key, is_causal=True)
    close(operator(query, key, value, is_causal=True), weights @ value)


# Log-normal


def test_matched_exponents_follow_the_formula():
    alpha, beta = matched_exponents(1.5, 0.5, slope=0.2, offset=-0.3)
    spread = (1.5**2 * 0.5**2 + 0.3) / 0.2
    assert alpha == pytest.approx((spread / 2) ** 0.5 / 1.5)
    assert beta == pytest.approx((spread / 2) ** 0.5 / 0.5)
    shares = alpha**2 * 1.5**2 + beta**2 * 0.5**2
    assert 0.2 * shares - 0.3 == pytest.approx(1.5**2 * 0.5**2)
    with pytest.raises(ValueError, match="key_deviation must be positive"):
        matched_exponents(1.0, 0.0)
    with pytest.raises(ValueError, match="slope and offset"):
        matched_exponents(0.1, 0.1, offset=1.0)


def test_log_normal_weights_are_spread_far_more_than_plain_exponential_ones():
    query, key = normal(256, 64), normal(256, 64, seed=1)
    softmax_spread = log_variance(query @ key.mT / 8)

    def spread(alpha, beta):
        return log_variance(torch.logsumexp(alpha * query[:, None] + beta * key, dim=-1))

    assert spread(1, 1) < 0.1 * softmax_spread
    assert spread(*matched_exponents(1.0, 1.0, SLOPE, OFFSET)) > 0.7 * softmax_spread


# Efficient attention and InLine


def test_efficient_attention_is_two_softmaxes_and_two_products():
    query, key, value = normal(7, 4), normal(9, 4, seed=1), normal(9, 2, seed=2)
    weights = query.softmax(-1) @ key.softmax(-2).mT
    close(weights.sum(-1), torch.ones(7, dtype=torch.float64))
    close(attnlib.efficient_attention(query, key, value), weights @ value)


@pytest.mark.parametrize("row", [0, 3, 8])
def test_a_causal_row_of_efficient_attention_reads_its_prefix(row):
    query, key, value = normal(9, 4), normal(9, 4, seed=1), normal(9, 2, seed=2)
    whole = attnlib.efficient_attention(query, key, value, is_causal=True, chunk=2)
    prefix = slice(0, row + 1)
    alone = attnlib.efficient_attention(query[row : row + 1], key[prefix], value[prefix])
    close(whole[row : row + 1], alone)


def test_inline_rows_sum_to_one_and_tell_a_query_from_its_double():
    query, key = normal(6, 4), normal(9, 4, seed=1)
    unit = torch.eye(9, dtype=torch.float64)
    rows = attnlib.injective_attention(query, key, unit)
    close(rows.sum(-1), torch.ones(6, dtype=torch.float64))
    assert (rows < 0).any()
    doubled = attnlib.injective_attention(2 * query, key, unit)
    assert (doubled - rows).abs().amax(-1).min() > 1e-3
    plain = [attnlib.linear_attention(q, key, unit, feature_map=relu) for q in (query, 2 * query)]
    close(plain[0], plain[1])


# What comes in wrong


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: taylor(0), "terms must be at least 1"),
        (lambda: taylor(3, scale=-1.0), "scale must be a positive"),
        (lambda: standardized_polynomial(0), "order must be at least 1"),
        (lambda: orthogonal_directions(0, 4, generator=generator()), "width must be at least 1"),
        (lambda: positive_random_features(torch.ones(4, 3))(torch.ones(2, 5)), "directions must"),
        (lambda: hedgehog(torch.ones(2, 3), torch.ones(4, 5)), "matrix must have the width"),
        (lambda: attnlib.performer_attention(*[torch.ones(2, 3)] * 3, features=0), "features must"),
        (lambda: attnlib.taylor_attention(*[torch.ones(2, 3)] * 3, terms=0), "terms must"),
    ],
)
def test_wrong_options_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("performer", {"features": 16}),
        ("sata-taylor", {}),
        ("fastmax", {}),
        ("lln-attention", {}),
        ("efficient-attention", {}),
        ("inline-attention", {}),
    ],
)
def test_the_kernel_reads_what_pytorch_reads(name, options):
    pytest.importorskip("triton")
    inputs = [normal(1, 2, 20, 4, seed=seed) for seed in range(3)]
    call = attnlib.get(name)
    close(
        call(*inputs, is_causal=True, backend="triton", **options),
        call(*inputs, is_causal=True, backend="torch", **options),
    )
