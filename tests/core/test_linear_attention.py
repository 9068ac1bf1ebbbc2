"""Linear attention: its dense, chunked and recurrent forms are one function."""

import pytest
import torch

from attnlib import (
    LinearState,
    attend,
    feature_map_attention,
    linear_attention,
    linear_attention_step,
)
from attnlib.score.features import feature_product
from attnlib.weight.division import divided, divided_by_sum
from attnlib.weight.feature_maps import elu_plus_one, exponential, relu

LENGTHS = (1, 15, 63, 100, 257)


def draw(queries, keys, heads=2, key_heads=2, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, count, length, width, generator=generator).double().requires_grad_()
        for count, length, width in (
            (heads, queries, 5),
            (key_heads, keys, 5),
            (key_heads, keys, 3),
        )
    ]


def assert_same(got, wanted, inputs):
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    ours, theirs = (
        torch.autograd.grad((read * probe).sum(), inputs, retain_graph=True)
        for read in (got, wanted)
    )
    for slope, target in zip(ours, theirs, strict=True):
        torch.testing.assert_close(slope, target, rtol=0, atol=1e-12)


def step_by_step(query, key, value, **options):
    state, reads = None, []
    for token in zip(*(tensor.split(1, dim=-2) for tensor in (query, key, value)), strict=True):
        read, state = linear_attention_step(state, *token, **options)
        reads.append(read)
    return torch.cat(reads, dim=-2), state


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("feature_map", [elu_plus_one, exponential])
def test_the_dense_the_chunked_and_the_recurrent_form_agree(length, feature_map):
    inputs = draw(length, length)
    wanted = feature_map_attention(*inputs, feature_map=feature_map, is_causal=True)
    chunked = linear_attention(*inputs, feature_map=feature_map, is_causal=True, chunk=16)
    recurrent, _ = step_by_step(*inputs, feature_map=feature_map)
    assert_same(chunked, wanted, inputs)
    assert_same(recurrent, wanted, inputs)


@pytest.mark.parametrize("length", LENGTHS)
def test_without_a_mask_two_products_of_matrices_are_the_dense_form(length):
    inputs = draw(length, length + 2)
    assert_same(linear_attention(*inputs), feature_map_attention(*inputs), inputs)


@pytest.mark.parametrize(("queries", "keys"), [(20, 33), (33, 20), (1, 9), (9, 1)])
@pytest.mark.parametrize("offset", [0, 1, 7, 40])
def test_fewer_and_more_queries_than_keys_at_any_offset(queries, keys, offset):
    inputs = draw(queries, keys)
    options = {"is_causal": True, "query_offset": offset}
    got = linear_attention(*inputs, chunk=4, **options)
    assert_same(got, feature_map_attention(*inputs, **options), inputs)


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1000])
def test_the_size_of_a_chunk_changes_nothing(chunk):
    inputs = draw(65, 65)
    got = linear_attention(*inputs, is_causal=True, chunk=chunk)
    assert_same(got, feature_map_attention(*inputs, is_causal=True), inputs)


def test_the_state_is_the_sum_over_all_keys():
    query, key, value = draw(9, 9)
    _, state = step_by_step(query, key, value)
    torch.testing.assert_close(state.matrix, elu_plus_one(key).mT @ value, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.total, elu_plus_one(key).sum(-2), rtol=0, atol=1e-12)


def test_a_step_leaves_the_state_that_it_was_given():
    query, key, value = draw(1, 1)
    _, state = linear_attention_step(None, query, key, value)
    before = LinearState(*(part.clone() for part in state))
    linear_attention_step(state, query, key, value)
    assert all(torch.equal(old, new) for old, new in zip(before, state, strict=True))


@pytest.mark.parametrize("is_causal", [False, True])
def test_groups_share_a_key_head(is_causal):
    inputs = draw(9, 9, heads=6)
    options = {"is_causal": is_causal, "enable_gqa": True}
    wanted = feature_map_attention(*inputs, **options)
    assert_same(linear_attention(*inputs, chunk=4, **options), wanted, inputs)
    if is_causal:
        assert_same(step_by_step(*inputs, enable_gqa=True)[0], wanted, inputs)


MASKS = {
    "padding of each sequence": (2, 1, 1, 12),
    "padding of all sequences": (12,),
    "a table for all heads": (9, 12),
    "a table for each head": (2, 2, 9, 12),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_mask_is_followed(name, is_causal):
    inputs = draw(9, 12, batch=2)
    mask = torch.rand(MASKS[name], generator=torch.Generator().manual_seed(1)) < 0.6
    options = {"attn_mask": mask, "is_causal": is_causal}
    got = linear_attention(*inputs, chunk=4, **options)
    assert_same(got, feature_map_attention(*inputs, **options), inputs)


def test_a_padding_of_the_keys_makes_no_table(monkeypatch):
    def refuse(*tensors, **options):
        raise AssertionError("a table of all pairs was made")

    monkeypatch.setattr("attnlib.read.linear_attention.feature_map_attention", refuse)
    mask = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    linear_attention(*draw(9, 12, batch=2), attn_mask=mask.expand(2, 2, 9, 12))
    with pytest.raises(AssertionError, match="a table of all pairs"):
        linear_attention(*draw(9, 12, batch=2), attn_mask=mask.expand(2, 2, 9, 12).contiguous())


def test_without_normalizing_the_read_is_the_numerator():
    query, key, value = draw(5, 5)
    wanted = (elu_plus_one(query) @ elu_plus_one(key).mT).tril() @ value
    got = linear_attention(query, key, value, is_causal=True, normalize=False)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    stepped, _ = step_by_step(query, key, value, normalize=False)
    torch.testing.assert_close(stepped, wanted, rtol=0, atol=1e-12)


def test_query_and_key_may_have_maps_of_their_own():
    inputs = draw(15, 15)
    maps = {"feature_map": elu_plus_one, "key_feature_map": relu}
    wanted = attend(
        *inputs,
        score=feature_product(elu_plus_one, relu),
        weight=divided_by_sum,
        is_causal=True,
    )
    assert_same(linear_attention(*inputs, is_causal=True, **maps), wanted, inputs)
    assert_same(step_by_step(*inputs, **maps)[0], wanted, inputs)


def test_a_row_whose_sum_is_zero_reads_zero_with_finite_gradients():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    key = torch.tensor([[1.0, -1.0], [2.0, -1.0]]).requires_grad_()
    value = torch.tensor([[1.0], [4.0]]).requires_grad_()
    for read in (
        linear_attention(query, key, value, feature_map=relu),
        feature_map_attention(query, key, value, feature_map=relu),
    ):
        assert read.tolist() == [[3.0], [0.0]]
        slopes = torch.autograd.grad(read.sum(), (query, key, value))
        assert all(slope.isfinite().all() for slope in slopes)


def test_a_sum_too_small_to_be_divided_by_counts_as_zero():
    sums = torch.tensor([[0.0], [2e-36], [2e-25]], requires_grad=True)
    total = torch.tensor([[0.0], [1e-36], [1e-25]], requires_grad=True)
    read = divided(sums, total)
    assert read[:2].tolist() == [[0.0], [0.0]]
    assert read[2].item() == pytest.approx(2.0)
    slopes = torch.autograd.grad(read.sum(), (sums, total))
    assert all(slope.isfinite().all() for slope in slopes)


def test_a_map_whose_sums_go_negative_is_refused_and_reads_without_dividing():
    query, key, value = draw(5, 5)
    for form in (linear_attention, feature_map_attention):
        with pytest.raises(ValueError, match=r"feature_map must give products.*negative"):
            form(query, key, value, feature_map=lambda x: x)
    torch.testing.assert_close(
        linear_attention(query, key, value, feature_map=lambda x: x, normalize=False),
        query @ key.mT @ value,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_sums_in_single(dtype):
    inputs = [torch.full((1, 4000, 4), 2.0, dtype=dtype) for _ in range(3)]
    read = linear_attention(*inputs, is_causal=True)
    assert read.dtype == dtype
    assert (read == 2).all()  # 4000 keys of weight 36 sum to 144,000, more than float16 holds
    _, state = linear_attention_step(None, *(tensor[:, :1] for tensor in inputs))
    assert state.matrix.dtype == torch.float32


@pytest.mark.parametrize("length", [15, 70])
def test_the_kernel_reads_what_the_chunks_read(length):
    pytest.importorskip("triton")
    inputs = draw(length, length + 2)
    for offset in (0, 3):
        options = {"is_causal": True, "query_offset": offset}
        got = linear_attention(*inputs, backend="triton", **options)
        assert_same(got, linear_attention(*inputs, backend="torch", **options), inputs)


def test_the_kernel_says_what_it_cannot_do():
    pytest.importorskip("triton")
    inputs = draw(5, 5)
    with pytest.raises(ValueError, match="without is_causal linear attention is two products"):
        linear_attention(*inputs, backend="triton")
    wide = [torch.ones(1, 3, 300)] * 3
    with pytest.raises(ValueError, match="up to 256 features"):
        linear_attention(*wide, is_causal=True, backend="triton")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"query_offset": -1}, ValueError, "query_offset"),
        ({"feature_map": 3}, TypeError, "feature_map must be callable"),
        ({"feature_map": lambda x: x.sum(-1)}, ValueError, "feature_map must take"),
        ({"feature_map": lambda x: x.float()}, ValueError, "the same dtype"),
        ({"key_feature_map": lambda x: x[..., :2]}, ValueError, "as many features"),
        ({"backend": "cuda"}, ValueError, "backend"),
        ({"attn_mask": torch.ones(9, 3, dtype=torch.bool)}, ValueError, "attn_mask"),
    ],
)
def test_wrong_options_are_refused_by_name(options, kind, message):
    with pytest.raises(kind, match=message):
        linear_attention(*draw(9, 12), **options)


def test_a_state_that_does_not_fit_is_refused():
    token = draw(1, 1)
    _, state = linear_attention_step(None, *token)
    with pytest.raises(TypeError, match="state must be a LinearState"):
        linear_attention_step(tuple(state), *token)
    with pytest.raises(ValueError, match="state must have a matrix"):
        linear_attention_step(LinearState(state.matrix[..., :1], state.total), *token)
    with pytest.raises(ValueError, match="query must have one token, got 2"):
        linear_attention_step(state, *draw(2, 2))


@pytest.mark.parametrize("is_causal", (False, True))
def test_no_query_with_a_mask_gives_an_empty_read(is_causal):
    query, key, value = draw(0, 4)
    for mask in (torch.ones(2, 0, 4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        read = linear_attention(
            query, key, value, attn_mask=mask.expand(1, 2, 0, 4), is_causal=is_causal
        )
        assert read.shape == (1, 2, 0, 3)


def test_features_of_no_channel_read_zero():
    query, key, value = draw(3, 3)
    for is_causal in (False, True):
        read = linear_attention(query[..., :0], key[..., :0], value, is_causal=is_causal)
        assert torch.equal(read, torch.zeros_like(value))


def test_a_mask_by_query_is_no_way_around_the_checks():
    mask = torch.ones(3, 3, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="backend must be one of"):
        linear_attention(*draw(3, 3), attn_mask=mask, backend="cuda")
    with pytest.raises(ValueError, match="backend='triton' cannot run this call"):
        linear_attention(*draw(3, 3), attn_mask=mask, backend="triton")


@pytest.mark.parametrize("name", ("matrix", "total"))
def test_each_part_of_a_state_is_looked_at(name):
    token = draw(1, 1)
    _, state = linear_attention_step(None, *token)
    with pytest.raises(TypeError, match=f"state.{name} must be a torch.Tensor"):
        linear_attention_step(state._replace(**{name: None}), *token)
    with pytest.raises(ValueError, match="state must have a matrix"):
        linear_attention_step(state._replace(**{name: getattr(state, name).float()}), *token)
