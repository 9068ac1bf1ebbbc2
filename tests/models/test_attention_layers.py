"""Multi-head attention is the sum over heads; any operator drops in; positions do their part."""

from functools import partial

import pytest
import torch

from attnlib import attend, chunked_softmax_attention, softmax_attention
from attnlib.models import AdditiveAttention, Block, MultiHeadAttention
from attnlib.score import alibi, rotate
from attnlib.support import window


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_hand(layer, x, context, head, **options):
    """One head: its rows of the projections, attend, its columns of the output projection."""
    dim = layer.to_query.out_features // layer.heads
    shared = head * layer.key_heads // layer.heads
    own, common = slice(head * dim, (head + 1) * dim), slice(shared * dim, (shared + 1) * dim)
    query = x @ layer.to_query.weight[own].T
    key = context @ layer.to_key.weight[common].T
    value = context @ layer.to_value.weight[common].T
    if layer.position == "rope":
        query = rotate(query, torch.arange(query.shape[-2]))
        key = rotate(key, torch.arange(key.shape[-2]))
    read = attend(query[:, None], key[:, None], value[:, None], **options)[:, 0]
    return read @ layer.to_output.weight[:, own].T


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("position", ["none", "rope"])
def test_the_layer_is_the_sum_over_its_heads(position, key_heads):
    layer = MultiHeadAttention(24, 4, position=position, key_heads=key_heads, is_causal=True)
    x = torch.randn(3, 7, 24)
    total = sum(by_hand(layer, x, x, head, is_causal=True) for head in range(4))
    torch.testing.assert_close(layer(x), total)


def test_cross_attention_reads_the_context():
    layer = MultiHeadAttention(12, 2)
    x, context = torch.randn(2, 5, 12), torch.randn(2, 9, 12)
    total = sum(by_hand(layer, x, context, head) for head in range(2))
    torch.testing.assert_close(layer(x, context), total)


def test_alibi_and_relative_positions_change_the_score():
    x = torch.randn(2, 6, 8)
    layer = MultiHeadAttention(8, 1, position="alibi")
    torch.testing.assert_close(layer(x), by_hand(layer, x, x, 0, score_mod=alibi(1)))

    layer = MultiHeadAttention(8, 1, position="relative", reach=2)
    torch.testing.assert_close(layer(x), by_hand(layer, x, x, 0))
    with torch.no_grad():
        layer.distance_bias[0, 1] = 50.0  # distance j - i = -1: all the weight to the last token
    _, weights = layer(x, return_weights=True)
    torch.testing.assert_close(weights[:, 0, 1:].diagonal(dim1=-2, dim2=-1), torch.ones(2, 5))
    layer(x).sum().backward()
    assert layer.distance_bias.grad.abs().sum() > 0


@pytest.mark.parametrize("position", ["none", "rope", "alibi", "relative"])
def test_returned_weights_are_those_of_attend(position):
    layer = MultiHeadAttention(16, 2, position=position, is_causal=True)
    x = torch.randn(2, 5, 16)
    seen = {}

    def remember(query, key, value, **options):
        read, weights = attend(query, key, value, return_weights=True, **options)
        seen.setdefault("weights", weights)
        return read

    layer.operator = remember
    out, weights = layer(x, return_weights=True)
    torch.testing.assert_close(weights, seen["weights"])
    torch.testing.assert_close(out, layer(x))
    assert weights.shape == (2, 2, 5, 5)


def test_a_mask_removes_keys():
    layer = MultiHeadAttention(8, 2)
    x = torch.randn(1, 6, 8)
    mask = (torch.arange(6) < 4)[None]
    torch.testing.assert_close(layer(x, attn_mask=mask), layer(x, x[:, :4]))


def test_a_partial_of_an_operator_is_an_operator():
    layer = MultiHeadAttention(
        8, 2, operator=partial(softmax_attention, support=window(2)), is_causal=True
    )
    _, weights = layer(torch.randn(1, 6, 8), return_weights=True)
    assert torch.equal(weights[0, 0] > 0, torch.ones(6, 6).tril().triu(-1).bool())


def test_the_chunked_operator_gives_the_same_layer():
    layer = MultiHeadAttention(8, 2, position="alibi", is_causal=True)
    x = torch.randn(2, 9, 8)
    dense = layer(x)
    layer.operator = partial(chunked_softmax_attention, chunk=4)
    torch.testing.assert_close(layer(x), dense)


def test_an_operator_with_parameters_is_copied_for_each_layer_and_learns():
    operator = AdditiveAttention(4)
    blocks = [Block(8, 2, operator=operator, is_causal=True) for _ in range(2)]
    first, second = (block.attention.operator for block in blocks)
    assert first is not operator and first is not second
    x = torch.randn(1, 5, 8)
    blocks[1](blocks[0](x)).sum().backward()
    assert first.vector.grad is not None and second.vector.grad is not None
    assert operator.vector.grad is None
    assert sum(name.startswith("attention.operator") for name, _ in blocks[0].named_parameters())


def test_a_class_of_operators_is_made_for_each_layer_with_the_width_of_a_head():
    layers = [MultiHeadAttention(8, 2, operator=AdditiveAttention) for _ in range(2)]
    assert layers[0].operator.query_matrix.shape == (4, 4)
    assert not torch.equal(layers[0].operator.vector, layers[1].operator.vector)


def test_a_block_adds_to_what_it_was_given():
    block = Block(8, 2)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        block.attention.to_output.weight.zero_()
        block.perceptron[-1].weight.zero_()
        block.perceptron[-1].bias.zero_()
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position": "rotary"}, "position must be one of none, relative, alibi, rope"),
        ({"position": "alibbi"}, "Did you mean 'alibi'"),
        ({"heads": 3}, "heads must divide width 8, got 3"),
        ({"key_heads": 3}, "key_heads must divide heads 2, got 3"),
        ({"heads": 8, "position": "rope"}, "width / heads must be even"),
        ({"operator": lambda query, key, value: value, "is_causal": True}, "has no causal form"),
        ({"operator": AdditiveAttention(4), "position": "alibi"}, "takes no score_mod"),
        ({"operator": lambda query, key, value, *, gate: value}, "needs gate"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(8, **{"heads": 2, **arguments})


def test_an_operator_must_be_callable():
    with pytest.raises(TypeError, match="operator must be a name in the atlas or a callable"):
        MultiHeadAttention(8, 2, operator=3)
