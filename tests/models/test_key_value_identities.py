"""What the layers of chapter 1.4 equal: exact relations between them and multi-head attention."""

from functools import partial

import pytest
import torch

from attnlib.models import (
    AddedHeadEmbeddings,
    EfficientAttention,
    LatentAttention,
    LatentAttentionAfterRotation,
    LatentAttentionBeforeRotation,
    MultiHeadAttention,
    MultipliedHeadEmbeddings,
    OptimizedAttention,
    SuperAttention,
    UnequalHeadsAttention,
)
from attnlib.score import rotate

WIDTH, HEADS = 24, 4


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def copied(layer, **weights):
    """The layer with some of its matrices replaced."""
    with torch.no_grad():
        for name, weight in weights.items():
            layer.get_parameter(name).copy_(weight)
    return layer


def count(layer):
    return sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize("position", ["none", "rope"])
def test_multi_query_is_multi_head_with_projections_tied_across_heads(position):
    shared = MultiHeadAttention(WIDTH, HEADS, key_heads=1, position=position, is_causal=True)
    tied = MultiHeadAttention(WIDTH, HEADS, position=position, is_causal=True)
    copied(
        tied,
        **{
            "to_query.weight": shared.to_query.weight,
            "to_key.weight": shared.to_key.weight.repeat(HEADS, 1),
            "to_value.weight": shared.to_value.weight.repeat(HEADS, 1),
            "to_output.weight": shared.to_output.weight,
        },
    )
    x = torch.randn(2, 15, WIDTH)
    close(shared(x), tied(x))


@pytest.mark.parametrize("position", ["none", "rope"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_unequal_heads_with_equal_numbers_are_grouped_query_attention(position, key_heads):
    options = {"position": position, "is_causal": True}
    grouped = MultiHeadAttention(WIDTH, HEADS, key_heads=key_heads, **options)
    unequal = UnequalHeadsAttention(
        WIDTH, HEADS, key_heads=key_heads, value_heads=key_heads, **options
    )
    unequal.load_state_dict(grouped.state_dict())
    x = torch.randn(2, 15, WIDTH)
    close(unequal(x), grouped(x))
    assert count(unequal) == count(grouped)


def test_the_same_memory_can_hold_more_keys_or_more_values():
    more_values = UnequalHeadsAttention(WIDTH, HEADS, key_heads=1, value_heads=4)
    more_keys = UnequalHeadsAttention(WIDTH, HEADS, key_heads=4, value_heads=1)
    assert more_values.cache_numbers == more_keys.cache_numbers == 5 * 6
    assert count(more_values) == count(more_keys)


def test_augmented_queries_cost_parameters_and_keep_nothing():
    options = {"key_heads": 1, "value_heads": 2}
    plain = UnequalHeadsAttention(WIDTH, HEADS, **options)
    augmented = UnequalHeadsAttention(WIDTH, HEADS, query_expansion=1.5, **options)
    assert augmented.cache_numbers == plain.cache_numbers
    assert count(augmented) - count(plain) == 3 * WIDTH * 36
    q = torch.randn(5, WIDTH)
    gate, up, down = (getattr(augmented.augment, name).weight for name in ("gate", "up", "down"))
    inner = q @ gate.T
    close(augmented.augment(q), (inner * torch.sigmoid(inner) * (q @ up.T)) @ down.T)


def test_one_head_without_a_value_projection_is_standard_attention():
    standard = MultiHeadAttention(WIDTH, 1, is_causal=True)
    merged = copied(
        OptimizedAttention(WIDTH, is_causal=True),
        **{
            "to_query.weight": standard.to_query.weight,
            "to_key.weight": standard.to_key.weight,
            "to_output.weight": standard.to_output.weight @ standard.to_value.weight,
        },
    )
    x = torch.randn(2, 15, WIDTH)
    close(merged(x), standard(x))


def test_one_head_without_key_and_value_projections_is_standard_attention():
    standard = MultiHeadAttention(WIDTH, 1, is_causal=True)
    merged = copied(
        EfficientAttention(WIDTH, is_causal=True),
        **{
            "to_query.weight": standard.to_key.weight.T @ standard.to_query.weight,
            "to_output.weight": standard.to_output.weight @ standard.to_value.weight,
        },
    )
    x = torch.randn(2, 15, WIDTH)
    close(merged(x), standard(x))


@pytest.mark.parametrize("heads", [1, 4])
def test_merged_projections_have_three_quarters_and_half_of_the_parameters(heads):
    standard = count(MultiHeadAttention(WIDTH, heads))
    assert 4 * count(OptimizedAttention(WIDTH, heads)) == 3 * standard
    assert 2 * count(EfficientAttention(WIDTH, heads)) == standard
    assert count(SuperAttention(WIDTH, heads, length=9)) == standard // 2 + 81


@pytest.mark.parametrize("position", ["none", "rope"])
@pytest.mark.parametrize("layer_class", [OptimizedAttention, EfficientAttention])
def test_slices_of_the_tokens_are_keys_and_values_of_each_head(layer_class, position):
    layer = layer_class(WIDTH, HEADS - 1, position=position)
    standard = copied(
        MultiHeadAttention(WIDTH, HEADS - 1, position=position),
        **{
            "to_query.weight": layer.to_query.weight,
            "to_key.weight": dict(layer.named_parameters()).get("to_key.weight", torch.eye(WIDTH)),
            "to_value.weight": torch.eye(WIDTH),
            "to_output.weight": layer.to_output.weight,
        },
    )
    x = torch.randn(2, 15, WIDTH)
    close(layer(x), standard(x))


def test_super_attention_begins_as_efficient_attention():
    layer = SuperAttention(WIDTH, HEADS, length=20, is_causal=True)
    efficient = EfficientAttention(WIDTH, HEADS, is_causal=True)
    efficient.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "mixer"})
    x = torch.randn(2, 15, WIDTH)
    close(layer(x), efficient(x))


@pytest.mark.parametrize("is_causal", [False, True])
def test_super_attention_mixes_values_along_the_sequence(is_causal):
    layer = copied(SuperAttention(WIDTH, length=9, is_causal=is_causal), mixer=torch.randn(9, 9))
    x = torch.randn(2, 7, WIDTH)
    out, weights = layer(x, return_weights=True)
    mixer = layer.mixer[:7, :7].tril() if is_causal else layer.mixer[:7, :7]
    close(out, weights[:, 0] @ mixer @ x @ layer.to_output.weight.T)
    assert not is_causal or not weights.triu(1).any()


@pytest.mark.parametrize("layer_class", [AddedHeadEmbeddings, MultipliedHeadEmbeddings])
def test_head_embeddings_add_three_vectors_a_head_to_one_head(layer_class):
    head_width = WIDTH // HEADS
    layer = layer_class(WIDTH, HEADS)
    shared = 3 * WIDTH * head_width + WIDTH**2
    assert count(layer) - shared == 3 * HEADS * head_width
    difference = count(MultiHeadAttention(WIDTH, HEADS)) - count(layer)
    assert difference == (3 * HEADS**2 - 3 * HEADS) * head_width**2 - 3 * HEADS * head_width


@pytest.mark.parametrize("layer_class", [AddedHeadEmbeddings, MultipliedHeadEmbeddings])
def test_head_embeddings_are_multi_head_attention_on_changed_projections(layer_class):
    layer = layer_class(WIDTH, HEADS, is_causal=True)
    with torch.no_grad():
        for role in ("query", "key", "value"):
            layer.get_parameter(f"{role}_embedding").normal_()
    x = torch.randn(2, 15, WIDTH)
    reads = []
    for head in range(HEADS):
        q, k, v = (
            layer.of_head(
                getattr(layer, f"to_{role}")(x), layer.get_parameter(f"{role}_embedding")[head]
            )
            for role in ("query", "key", "value")
        )
        scores = q @ k.mT / (WIDTH // HEADS) ** 0.5
        unseen = torch.ones(15, 15, dtype=torch.bool).triu(1)
        reads.append(torch.softmax(scores.masked_fill(unseen, -torch.inf), -1) @ v)
    close(layer(x), torch.cat(reads, -1) @ layer.to_output.weight.T)
    shared, vector = torch.ones(1, 2), torch.tensor([[0.5, -2.0]])
    expected = {AddedHeadEmbeddings: [[1.5, -1.0]], MultipliedHeadEmbeddings: [[1.5, -1.0]]}
    assert layer.of_head(shared, vector).tolist() == expected[layer_class]
    doubled = {AddedHeadEmbeddings: [[2.5, 0.0]], MultipliedHeadEmbeddings: [[3.0, -2.0]]}
    assert layer.of_head(2 * shared, vector).tolist() == doubled[layer_class]


def test_added_key_vectors_cancel_and_added_value_vectors_are_a_constant():
    layer = AddedHeadEmbeddings(WIDTH, HEADS, is_causal=True)
    with torch.no_grad():
        layer.query_embedding.normal_()
    x = torch.randn(2, 15, WIDTH)
    before, weights = layer(x, return_weights=True)
    copied(layer, key_embedding=torch.randn(HEADS, 1, WIDTH // HEADS))
    after, same = layer(x, return_weights=True)
    close(after, before)
    close(same, weights)
    copied(layer, value_embedding=torch.randn(HEADS, 1, WIDTH // HEADS))
    moved = layer(x) - before
    close(moved, moved[:1, :1].expand_as(moved))
    assert moved.abs().max() > 0.1
    copied(layer, query_embedding=torch.randn(HEADS, 1, WIDTH // HEADS))
    assert (layer(x, return_weights=True)[1] - weights).abs().max() > 0.01


def test_added_key_vectors_do_not_cancel_once_they_are_rotated():
    layer = AddedHeadEmbeddings(WIDTH, HEADS, position="rope", is_causal=True)
    x = torch.randn(2, 15, WIDTH)
    before = layer(x)
    copied(layer, key_embedding=torch.randn(HEADS, 1, WIDTH // HEADS))
    assert (layer(x) - before).abs().max() > 0.01


def test_a_latent_of_full_width_can_be_multi_head_attention():
    standard = MultiHeadAttention(WIDTH, HEADS, is_causal=True)
    layer = LatentAttention(WIDTH, HEADS, latent_width=WIDTH, position="none", is_causal=True)
    layer.norm = torch.nn.Identity()
    copied(
        layer,
        **{
            "to_query.weight": standard.to_query.weight,
            "to_latent.weight": torch.eye(WIDTH),
            "up_key": standard.to_key.weight.unflatten(0, (HEADS, -1)),
            "up_value": standard.to_value.weight.unflatten(0, (HEADS, -1)),
            "to_output.weight": standard.to_output.weight,
        },
    )
    x = torch.randn(2, 15, WIDTH)
    close(layer(x), standard(x))
    read, _ = layer.step(None, x)
    close(read, standard(x))


def test_the_latent_layer_is_its_equation_head_by_head():
    layer = LatentAttention(WIDTH, 3, latent_width=10, is_causal=True)
    x = torch.randn(2, 15, WIDTH)
    latent = x @ layer.to_latent.weight.T
    latent = latent / (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    places = torch.arange(15)
    key_rotary = rotate(x @ layer.to_key_rotary.weight.T, places)
    future = torch.ones(15, 15, dtype=torch.bool).triu(1)
    total = 0
    for head in range(3):
        own, turned = slice(8 * head, 8 * head + 8), slice(4 * head, 4 * head + 4)
        query = x @ layer.to_query.weight[own].T
        query_rotary = rotate(x @ layer.to_query_rotary.weight[turned].T, places)
        scores = query @ (latent @ layer.up_key[head].T).mT + query_rotary @ key_rotary.mT
        weights = torch.softmax((scores / 12**0.5).masked_fill(future, -torch.inf), -1)
        read = weights @ latent @ layer.up_value[head].T
        total = total + read @ layer.to_output.weight[:, own].T
    close(layer(x), total)


def moved_weights(layer, shift):
    """The weights of the last eight tokens after `shift` tokens that nobody may see."""
    x = torch.randn(1, 8, WIDTH, generator=torch.Generator().manual_seed(1))
    before = torch.zeros(1, shift, WIDTH)
    mask = (torch.arange(shift + 8) >= shift)[None]
    weights = layer(torch.cat((before, x), 1), attn_mask=mask, return_weights=True)[1]
    return weights[..., shift:, shift:]


@pytest.mark.parametrize(
    ("make_layer", "relative"),
    [
        (partial(LatentAttention, latent_width=10), True),
        (partial(LatentAttentionBeforeRotation, latent_width=10), True),
        (partial(LatentAttentionAfterRotation, latent_width=10), False),
        (partial(UnequalHeadsAttention, key_heads=1, value_heads=3), True),
        (OptimizedAttention, True),
        (EfficientAttention, True),
        (partial(SuperAttention, length=20), True),
        (MultipliedHeadEmbeddings, True),
    ],
)
def test_where_keys_are_rotated_decides_whether_positions_are_relative(make_layer, relative):
    layer = make_layer(WIDTH, 3, position="rope", is_causal=True)
    difference = (moved_weights(layer, 5) - moved_weights(layer, 0)).abs().max()
    assert difference < 1e-12 if relative else difference > 1e-3


def test_latent_attention_decodes_without_making_keys(monkeypatch):
    layer = LatentAttention(WIDTH, HEADS - 1, latent_width=10, is_causal=True)
    x = torch.randn(2, 9, WIDTH)
    whole = layer(x)

    def refuse(*arguments):
        raise AssertionError("a key was made")

    monkeypatch.setattr(layer, "keys_and_values", refuse)
    kept, reads = None, []
    for i in range(9):
        read, kept = layer.step(kept, x[:, i : i + 1])
        reads.append(read)
    close(torch.cat(reads, 1), whole)
