"""`pointer_attention`: the weights themselves are the answer."""

import math

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped

from attnlib import pointer_attention

E = math.e


def inputs(queries=5, keys=7, lead=(), dtype=torch.float64):
    """Query of width 2, key of width 3, hidden width 4."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    tensors = normal(*lead, queries, 2), normal(*lead, keys, 3)
    return *tensors, {
        "query_matrix": normal(4, 2),
        "key_matrix": normal(4, 3),
        "vector": normal(4),
    }


def by_loops(query, key, query_matrix, key_matrix, vector):
    """The equation read aloud: one pair after the other."""
    rows = []
    for q in query:
        scores = [vector @ torch.tanh(query_matrix @ q + key_matrix @ k) for k in key]
        powers = torch.stack(scores).exp()
        rows.append(powers / powers.sum())
    return torch.stack(rows)


def close(got, wanted):
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_two_keys_with_scores_zero_and_one_share_the_weight_one_to_e():
    one = torch.ones(1, 1).double()
    key = torch.tensor([[0.0], [1.0]]).double()
    vector = 1 / torch.tanh(one[0])
    got = pointer_attention(one, key, query_matrix=0 * one, key_matrix=one, vector=vector)
    assert close(got, torch.tensor([[1, E]], dtype=torch.float64) / (1 + E))


def test_the_query_is_added_before_the_tangent():
    one = torch.ones(1, 1).double()
    key = torch.tensor([[-2.0], [0.0]]).double()  # query 2: sums 0 and 2, scores 0 and 1
    vector = 1 / torch.tanh(2 * one[0])
    got = pointer_attention(2 * one, key, query_matrix=one, key_matrix=one, vector=vector)
    assert close(got, torch.tensor([[1, E]], dtype=torch.float64) / (1 + E))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 15), (15, 63), (63, 1), (63, 15)])
def test_it_equals_the_sum_over_pairs_at_any_length(queries, keys):
    query, key, parts = inputs(queries, keys)
    assert close(pointer_attention(query, key, **parts), by_loops(query, key, **parts))


def test_a_place_that_is_masked_gets_nothing_and_changes_nothing():
    query, key, parts = inputs()
    allowed = torch.tensor([True, False, True, True, False, True, True])
    got = pointer_attention(query, key, **parts, attn_mask=allowed.expand(5, 7))
    assert not got[:, ~allowed].any()
    assert close(got[:, allowed], pointer_attention(query, key[allowed], **parts))
    other = key.where(allowed[:, None], 50.0)
    assert torch.equal(
        pointer_attention(query, other, **parts, attn_mask=allowed.expand(5, 7)), got
    )


def test_a_mask_may_differ_by_row_and_an_empty_row_is_zero():
    query, key, parts = inputs(3, 4)
    allowed = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    got = pointer_attention(query, key, **parts, attn_mask=allowed)
    assert close(got.sum(-1), torch.tensor([1.0, 1.0, 0.0]).double())
    assert got[1, 2] == 1 and not got[2].any()


@pytest.mark.parametrize("masked", [False, True])
def test_its_gradients_are_right(masked):
    query, key, parts = inputs(3, 4)
    allowed = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool() if masked else None
    names, tensors = list(parts), [query, key, *parts.values()]

    def answer(query, key, *rest):
        named = dict(zip(names, rest, strict=True))
        return pointer_attention(query, key, **named, attn_mask=allowed)

    assert torch.autograd.gradcheck(answer, [tensor.requires_grad_() for tensor in tensors])


@pytest.mark.parametrize("lead", [(2,), (2, 3)])
def test_each_sequence_is_answered_alone(lead):
    query, key, parts = inputs(lead=lead)
    got = pointer_attention(query, key, **parts)
    for place in torch.cartesian_prod(*map(torch.arange, lead)).view(-1, len(lead)).tolist():
        place = tuple(place)
        assert close(got[place], by_loops(query[place], key[place], **parts))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_is_kept_and_only_rounding_is_lost(dtype):
    query, key, parts = inputs(dtype=dtype)
    got = pointer_attention(query, key, **parts)
    exact = {name: tensor.double() for name, tensor in parts.items()}
    wanted = pointer_attention(query.double(), key.double(), **exact)
    assert got.dtype == dtype
    assert (got.double() - wanted).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("queries", "keys"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_point_to_gives_an_empty_answer(queries, keys):
    query, key, parts = inputs(queries, keys)
    assert pointer_attention(query, key, **parts).shape == (queries, keys)
    assert pointer_attention(*(x[None][:0] for x in (query, key)), **parts).shape[0] == 0


def wrong(change):
    query, key, parts = inputs(3, 4)
    given = {"query": query, "key": key, **parts}
    given.update(change(given))
    return lambda: pointer_attention(given.pop("query"), given.pop("key"), **given)


REFUSED = {
    "an integer query": ("query", lambda x: {"query": x["query"].long()}),
    "a query with one dimension": ("query", lambda x: {"query": x["query"][0]}),
    "a key that is a list": ("key", lambda x: {"key": x["key"].tolist()}),
    "a key of another dtype": ("key", lambda x: {"key": x["key"].float()}),
    "a key with another batch": ("key", lambda x: {"key": x["key"].expand(2, 4, 3)}),
    "another hidden width": ("vector", lambda x: {"vector": torch.ones(5).double()}),
    "a float mask": ("attn_mask", lambda x: {"attn_mask": torch.ones(3, 4)}),
    "a mask for other lengths": (
        "attn_mask",
        lambda x: {"attn_mask": torch.ones(4, 4, dtype=torch.bool)},
    ),
    "a mask with a batch": (
        "attn_mask",
        lambda x: {"attn_mask": torch.ones(2, 3, 4, dtype=torch.bool)},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_refused_by_name(case):
    name, change = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=name):
        wrong(change)()


WRONG_MATRICES = {
    "query_matrix": lambda x: {"query_matrix": torch.ones(4, 5).double()},
    "key_matrix": lambda x: {"key_matrix": torch.ones(4, 5).double()},
    "vector": lambda x: {"vector": torch.ones(4, 2).double()},
}


@pytest.mark.parametrize("name", WRONG_MATRICES)
def test_a_matrix_of_the_wrong_width_is_refused_by_name(name):
    with pytest.raises((ValueError, TypeError), match=name):
        wrong(WRONG_MATRICES[name])()


def test_inputs_are_left_as_they_were():
    query, key, parts = inputs(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    given = [query, key, *parts.values(), mask]
    before = [tensor.clone() for tensor in given]
    pointer_attention(query, key, **parts, attn_mask=mask)
    assert all(map(torch.equal, given, before))


def test_the_shapes_in_the_signature_are_true():
    checked = jaxtyped(pointer_attention, typechecker=beartype)
    for lead in ((), (2,), (2, 3)):
        query, key, parts = inputs(lead=lead)
        mask = torch.ones(5, 7, dtype=torch.bool)
        assert checked(query, key, **parts, attn_mask=mask).shape == (*lead, 5, 7)
