"""Heads that choose their tokens: dense attention when they take all, and what they cost."""

import pytest
import torch

from attnlib import attend
from attnlib.models import DecoderLM, MultiHeadAttention
from attnlib.models.mixture_of_sparse_heads import (
    DenseAndSparseHeads,
    MixtureOfSparseHeads,
    StridedHeads,
    operations_of_dense_head,
    operations_of_sparse_head,
)
from attnlib.models.replaced import with_attention
from attnlib.score.positions import rotate

LENGTHS = [1, 15, 63, 100, 257]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_with(**options):
    torch.manual_seed(0)
    return MixtureOfSparseHeads(12, 3, **options).double()


def dense_form(layer, x):
    """Each head over all N places: a mask keeps the chosen ones, the others read nothing."""
    strength = layer.to_router(x).sigmoid().mT
    _, places = layer.choose(x)
    chosen = torch.zeros_like(strength, dtype=torch.bool).scatter(-1, places, True)
    query, key, value = (
        torch.einsum("bnw,hwd->bhnd", x, matrix)
        for matrix in (layer.to_query, layer.to_key, layer.to_value)
    )
    if layer.position == "rope":
        query, key = (rotate(each, torch.arange(x.shape[1])) for each in (query, key))
    read = attend(
        query,
        key,
        value,
        attn_mask=chosen[..., :, None] & chosen[..., None, :],
        is_causal=layer.is_causal,
    )
    return torch.einsum("bhnd,hdw->bnw", strength[..., None] * read, layer.to_output)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("position", ["none", "rope"])
def test_the_gathered_form_equals_dense_attention_under_the_mask_of_the_chosen(length, position):
    layer = layer_with(top_k=-(-length // 3), is_causal=True, position=position)
    x = draw(2, length, 12).requires_grad_()
    probe = draw(2, length, 12, seed=1)
    parts = (x, *layer.parameters())
    ours, dense = layer(x), dense_form(layer, x)
    assert torch.allclose(ours, dense, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad((read * probe).sum(), parts) for read in (ours, dense)]
    for mine, wanted in zip(*slopes, strict=True):
        assert torch.allclose(mine, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("position", ["none", "rope"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_with_all_tokens_and_weight_one_it_is_multi_head_attention(position, is_causal):
    dense = MultiHeadAttention(12, 3, position=position, is_causal=is_causal).double()
    sparse = MixtureOfSparseHeads.from_multi_head(dense, top_k=20)
    x = draw(2, 20, 12)
    assert torch.allclose(2 * sparse(x), dense(x), atol=1e-12)  # a router of zeros weighs 1/2


def test_each_head_takes_its_own_tokens_and_the_others_are_left_as_they_are():
    layer = layer_with(top_k=4)
    x = draw(1, 20, 12)
    _, places = layer.choose(x)
    assert len({tuple(row) for row in places[0].tolist()}) == 3
    taken = torch.zeros(20, dtype=torch.bool)
    taken[places.flatten()] = True
    assert not layer(x)[0, ~taken].any()
    assert layer(x)[0, taken].abs().amax(-1).min() > 0


def test_the_router_learns_through_the_weight_of_the_chosen_tokens():
    layer = layer_with(top_k=4)
    layer(draw(1, 20, 12)).square().sum().backward()
    assert layer.to_router.weight.grad.abs().amax(-1).min() > 0


def test_a_later_token_can_push_an_earlier_one_out():
    layer = layer_with(top_k=3, is_causal=True)
    x = draw(1, 12, 12)
    changed = x.clone()
    changed[:, 6:] = 20 * layer.to_router.weight[0].detach()
    assert (layer(changed) - layer(x))[:, :6].abs().max() > 1e-3


def test_no_read_passes_from_a_later_to_an_earlier_token():
    layer = layer_with(top_k=12, is_causal=True)
    x = draw(1, 12, 12)
    changed = torch.cat((x[:, :7], draw(1, 5, 12, seed=1)), dim=1)
    assert torch.allclose(layer(changed)[:, :7], layer(x)[:, :7], atol=1e-12)


def test_strided_heads_take_the_same_places_in_every_sequence():
    torch.manual_seed(0)
    layer = StridedHeads(12, 3, top_k=4, is_causal=True).double()
    _, places = layer.choose(draw(2, 20, 12))
    wanted = torch.tensor([[0, 5, 10, 15], [1, 6, 11, 16], [2, 7, 12, 17]])
    assert torch.equal(places, wanted.expand(2, 3, 4))
    x = draw(2, 20, 12, seed=2)
    assert torch.allclose(layer(x), dense_form(layer, x), atol=1e-12)


def test_the_hybrid_adds_what_both_kinds_read_and_trains_in_a_model():
    def layer():
        return DenseAndSparseHeads(
            MultiHeadAttention(16, 2, is_causal=True),
            MixtureOfSparseHeads(16, 6, top_k=4, head_width=8, is_causal=True),
        )

    model = with_attention(DecoderLM(10, width=16, heads=2, position="sinusoidal"), layer)
    tokens = torch.randint(10, (2, 12), generator=torch.Generator().manual_seed(0))
    model(tokens).sum().backward()
    part = model.blocks[0].attention
    assert part.sparse.to_router.weight.grad.any()
    x = torch.randn(1, 12, 16)
    assert torch.equal(part(x), part.dense(x) + part.sparse(x))


def test_operations_are_those_of_the_products():
    length, width, head_width, top_k = 64, 32, 8, 16
    products = 4 * 2 * top_k * width * head_width + 2 * 2 * top_k**2 * head_width
    router_and_weight = 2 * length * width + top_k * head_width
    sparse = operations_of_sparse_head(length, width, head_width, top_k)
    assert sparse == products + router_and_weight
    assert operations_of_dense_head(top_k, width, head_width) == products


@pytest.mark.parametrize("kind", [MixtureOfSparseHeads, StridedHeads])
def test_more_tokens_than_there_are_is_refused(kind):
    with pytest.raises(ValueError, match="top_k"):
        kind(12, 3, top_k=5)(torch.zeros(1, 4, 12))


@pytest.mark.parametrize(
    ("options", "name"),
    [({"top_k": 0}, "top_k"), ({"top_k": 2, "position": "alibi"}, "position")],
)
def test_wrong_options_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        MixtureOfSparseHeads(12, 3, **options)


def test_heads_that_do_not_divide_the_width_need_a_head_width():
    with pytest.raises(ValueError, match="heads"):
        MixtureOfSparseHeads(12, 5, top_k=2)
    with pytest.raises(ValueError, match="attn_mask"):
        layer_with(top_k=2)(torch.zeros(1, 4, 12).double(), attn_mask=torch.ones(4, 4) > 0)
