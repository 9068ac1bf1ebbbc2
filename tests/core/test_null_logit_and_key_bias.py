"""One null logit and one key of its own: equal to attend over one more key, by every form."""

import math
from functools import partial

import pytest
import torch

from attnlib import attend, key_bias_attention, null_logit_attention, softmax_attention
from attnlib.models import DecoderLM, MultiHeadAttention
from attnlib.score import alibi
from attnlib.support import window
from attnlib.weight.key_bias_attention import KeyBiasAttention
from attnlib.weight.null_logit import softmax_with_null
from attnlib.weight.null_logit_attention import NullLogitAttention


def draw(queries, keys, heads=2, key_heads=2, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, count, length, width, generator=generator).double().requires_grad_()
        for count, length, width in (
            (heads, queries, 8),
            (key_heads, keys, 8),
            (key_heads, keys, 5),
        )
    ]


def same(got, wanted, inputs):
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def with_extra(key, value, extra_key, extra_value):
    """The keys and values with one more in front, the plain way."""
    lead = key.shape[:-2]
    first = extra_key.expand(*lead, 1, key.shape[-1])
    read = extra_value.expand(*lead, 1, value.shape[-1])
    return torch.cat((first, key), -2), torch.cat((read, value), -2)


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
def test_a_null_logit_is_a_gate_on_the_softmax_read(length):
    query, key, _ = inputs = draw(length, length)
    null = torch.tensor([0.7, -2.0], dtype=torch.float64, requires_grad=True)
    scores = (query @ key.mT / math.sqrt(8)).masked_fill(
        torch.ones(length, length).triu(1).bool(), -torch.inf
    )
    gate = torch.sigmoid(scores.logsumexp(-1, keepdim=True) - null[:, None, None])
    wanted = gate * softmax_attention(*inputs, is_causal=True)
    got = null_logit_attention(*inputs, null_logit=null, is_causal=True, chunk=16)
    same(got, wanted, (*inputs, null))


def test_the_weight_is_softmax_over_one_more_entry():
    scores = torch.tensor([[2.0, -1.0, 0.5]])
    support = torch.tensor([[True, False, True]])
    total = math.exp(0.3) + math.exp(2.0) + math.exp(0.5)
    wanted = torch.tensor([[math.exp(2.0) / total, 0.0, math.exp(0.5) / total]])
    assert torch.allclose(softmax_with_null(scores, support, 0.3), wanted)
    assert torch.equal(
        softmax_with_null(scores, torch.zeros_like(support)), torch.zeros_like(scores)
    )


def test_an_empty_row_has_no_weights_even_where_there_is_no_null():
    scores, support = torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool)
    assert not softmax_with_null(scores, support, -math.inf).any()
    assert not softmax_with_null(scores, support, 0.0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("null", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_large_scores_and_nulls_stay_finite(dtype, null, size):
    scores = torch.tensor([[size, size / 2, 0.0]], dtype=dtype, requires_grad=True)
    weights = softmax_with_null(scores, torch.tensor([[True, True, False]]), null)
    weights.square().sum().backward()
    assert weights.isfinite().all()
    assert scores.grad.isfinite().all()
    assert weights.sum() <= 1.01


def test_no_null_is_softmax_and_a_huge_one_reads_nothing():
    inputs = draw(9, 9)
    plain = softmax_attention(*inputs, is_causal=True)
    none = null_logit_attention(*inputs, null_logit=-math.inf, is_causal=True)
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-12)
    assert null_logit_attention(*inputs, null_logit=1e4).abs().max() == 0


@pytest.mark.parametrize("length", [15, 63])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_kernel_with_a_sink_gives_the_same_read_and_gradients(length, is_causal):
    pytest.importorskip("triton")
    inputs = draw(length, length + 2, heads=4, batch=1)
    null = torch.tensor([0.7, -2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    options = {"null_logit": null, "is_causal": is_causal, "query_offset": 2, "enable_gqa": True}
    got = null_logit_attention(*inputs, **options, backend="triton")
    same(got, null_logit_attention(*inputs, **options), (*inputs, null))


def test_the_kernel_takes_a_padding_and_one_number_for_all_heads():
    pytest.importorskip("triton")
    inputs = draw(9, 15)
    mask = torch.rand(2, 1, 1, 15, generator=torch.Generator().manual_seed(1)) < 0.6
    options = {"null_logit": 0.4, "attn_mask": mask}
    got = null_logit_attention(*inputs, **options, backend="triton")
    same(got, null_logit_attention(*inputs, **options), inputs)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"score_mod": alibi(2)}, "score_mod"),
        ({"support": window(3)}, "support"),
        ({"attn_mask": torch.ones(9, 9, dtype=torch.bool)}, "attn_mask"),
    ],
)
def test_what_the_kernel_cannot_do_is_said(options, reason):
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=f"backend='triton' cannot run this call.*{reason}"):
        null_logit_attention(*draw(9, 9), **options, backend="triton")


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
def test_a_key_bias_is_attention_over_one_more_key_that_all_see(length):
    query, key, value = inputs = draw(length, length)
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(2, 8, generator=generator).double().requires_grad_()
    said = torch.randn(2, 5, generator=generator).double().requires_grad_()
    keys, values = with_extra(key, value, own[:, None], said[:, None])
    mask = torch.ones(length, length).tril().bool()
    mask = torch.cat((torch.ones(length, 1).bool(), mask), -1)
    wanted = attend(query, keys, values, attn_mask=mask)
    options = {"bias_key": own, "bias_value": said, "is_causal": True}
    same(key_bias_attention(*inputs, **options, chunk=16), wanted, (*inputs, own, said))


def test_the_zero_key_is_the_null_logit_zero():
    inputs = draw(9, 12)
    options = {"is_causal": True, "query_offset": 3}
    torch.testing.assert_close(
        key_bias_attention(*inputs, **options), null_logit_attention(*inputs, **options)
    )


@pytest.mark.parametrize("operator", [key_bias_attention, null_logit_attention])
def test_supports_and_score_changes_see_the_positions_of_the_text(operator):
    inputs = draw(9, 12)
    options = {"support": window(4), "score_mod": alibi(2), "query_offset": 3, "is_causal": True}
    wanted = attend(*inputs, weight=partial(softmax_with_null, null_logit=0.0), **options)
    torch.testing.assert_close(operator(*inputs, **options), wanted, rtol=0, atol=1e-12)


def test_a_row_without_keys_reads_the_value_of_the_bias_alone():
    inputs = draw(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    said = torch.arange(5.0).double()
    read = key_bias_attention(*inputs, bias_value=said, attn_mask=mask)
    torch.testing.assert_close(read[..., 1, :], said.expand(2, 2, 5))
    assert not null_logit_attention(*inputs, attn_mask=mask)[..., 1, :].any()


@pytest.mark.parametrize(
    ("make", "learnt", "count"),
    [
        (NullLogitAttention, "null_logit", 1),
        (NullLogitAttention(heads=2), "null_logit", 2),
        (KeyBiasAttention, "bias_key", 1),
        (KeyBiasAttention(8, heads=2), "bias_key", 2),
    ],
)
def test_modules_learn_their_null_in_each_layer(make, learnt, count):
    model = DecoderLM(7, width=16, heads=2, layers=2, operator=make)
    tokens = torch.randint(7, (2, 6), generator=torch.Generator().manual_seed(0))
    logits, weights = model(tokens, return_weights=True)
    logits.square().sum().backward()
    own = [getattr(block.attention.operator, learnt) for block in model.blocks]
    assert own[0] is not own[1]
    assert all(len(part) == count and part.grad.abs().sum() > 0 for part in own)
    assert (weights.sum(-1) < 1).all()


@pytest.mark.parametrize(
    ("use", "kind", "name"),
    [
        (lambda q, k, v: null_logit_attention(q, k, v, null_logit="one"), TypeError, "null_logit"),
        (lambda q, k, v: null_logit_attention(q, k, v, null_logit=True), TypeError, "null_logit"),
        (
            lambda q, k, v: null_logit_attention(q, k, v, null_logit=math.nan),
            ValueError,
            "null_logit",
        ),
        (
            lambda q, k, v: null_logit_attention(q, k, v, null_logit=math.inf),
            ValueError,
            "null_logit",
        ),
        (
            lambda q, k, v: null_logit_attention(q, k, v, null_logit=torch.zeros(3)),
            ValueError,
            r"null_logit.*\(2,\).*got \(3,\)",
        ),
        (
            lambda q, k, v: null_logit_attention(q, k, v, null_logit=torch.zeros(2).long()),
            TypeError,
            "null_logit",
        ),
        (lambda q, k, v: null_logit_attention(q, k, v, backend="cuda"), ValueError, "backend"),
        (
            lambda q, k, v: key_bias_attention(q, k, v, bias_key=torch.zeros(3, 8)),
            ValueError,
            "bias_key",
        ),
        (
            lambda q, k, v: key_bias_attention(q, k, v, bias_value=torch.zeros(8)),
            ValueError,
            "bias_value",
        ),
        (lambda q, k, v: key_bias_attention(q, k, v, bias_key=3.0), TypeError, "bias_key"),
    ],
)
def test_wrong_nulls_and_biases_are_refused_by_name(use, kind, name):
    with pytest.raises(kind, match=name):
        use(*draw(4, 4))


def test_wrong_numbers_of_heads_in_a_layer_are_refused():
    layer = MultiHeadAttention(16, 4, operator=NullLogitAttention(heads=2))
    with pytest.raises(ValueError, match="null_logit"):
        layer(torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match="heads"):
        NullLogitAttention(heads=0)


def test_one_null_logit_serves_all_heads():
    torch.manual_seed(0)
    query, null = torch.randn(2, 5, 4, dtype=torch.float64), torch.tensor([0.5]).double()
    found = null_logit_attention(query, query, query, null_logit=null)
    assert (found - null_logit_attention(query, query, query, null_logit=0.5)).abs().max() < 1e-12


def test_a_score_change_or_support_of_another_form_is_refused_by_name():
    query = torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match="score_mod must keep the shape"):
        null_logit_attention(query, query, query, score_mod=lambda s, b, h, i, j: s.sum())
    with pytest.raises((ValueError, TypeError), match="support"):
        null_logit_attention(query, query, query, support=lambda b, h, i, j: i - j)
