"""Each ablation takes away what it says, and nothing else."""

import pytest
import torch

from attnlib import attend
from attnlib.conformance.trial import draw, lower
from attnlib.models import DecoderLM, MultiHeadAttention
from attnlib.models.ablated_language import ABLATIONS, ablate
from attnlib.models.attention_ablations import (
    GatedPerceptron,
    GuidedAttention,
    LearntMap,
    RandomMap,
    approximate_attention,
    key_alone_attention,
    own_value,
    taylor,
)
from attnlib.weight.uniform_attention import uniform_attention

SIZES = {"width": 8, "heads": 2, "layers": 2, "max_length": 12, "position": "rope"}
TEXTS = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))


def operators():
    torch.manual_seed(0)
    learnt = LearntMap(heads=2, max_length=9)
    torch.nn.init.normal_(learnt.table)
    return {
        "own value": own_value,
        "uniform": uniform_attention,
        "Taylor": approximate_attention,
        "key alone": key_alone_attention,
        "learnt map": learnt,
        "random map": RandomMap(heads=2, max_length=9, seed=1),
    }


def weights(operator, query, key, **options):
    n = key.shape[-2]
    return operator(query, key, torch.eye(n, dtype=key.dtype).expand(2, 2, n, n), **options)


@pytest.fixture
def model():
    def build(name, **options):
        return ABLATIONS[name](11, **SIZES, **options).double()

    return build


@pytest.mark.parametrize("name", operators())
def test_no_operator_reads_the_future_and_rows_sum_to_one(name):
    query, key, _ = draw(5, 5)
    got = weights(operators()[name], query, key, is_causal=True)
    assert torch.equal(got * ~lower(5, 5), torch.zeros_like(got))
    assert torch.allclose(got.sum(-1), torch.ones(2, 2, 5, dtype=got.dtype))


@pytest.mark.parametrize("name", operators())
def test_a_masked_key_has_no_weight_and_an_empty_row_reads_zero(name):
    query, key, _ = draw(4, 4)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[:, 1] = False
    mask[2] = False
    got = weights(operators()[name], query, key, attn_mask=mask)
    assert not (got * ~mask).any() and got.isfinite().all()


@pytest.mark.parametrize("name", operators())
def test_one_token_alone_reads_its_own_value(name):
    query, key, value = draw(1, 1)
    assert torch.allclose(operators()[name](query, key, value, is_causal=True), value)


@pytest.mark.parametrize(
    ("name", "query_counts", "key_counts"),
    [
        ("own value", False, False),
        ("uniform", False, False),
        ("learnt map", False, False),
        ("random map", False, False),
        ("key alone", True, True),
        ("Taylor", True, True),
    ],
)
def test_weights_depend_on_content_only_where_they_should(name, query_counts, key_counts):
    operator = operators()[name]
    query, key, _ = draw(5, 5)
    before = weights(operator, query, key)
    assert torch.equal(before, weights(operator, -2 * query, key)) is not query_counts
    assert torch.equal(before, weights(operator, query, key.flip(-2))) is not key_counts


def test_the_key_alone_gives_all_queries_the_same_weights():
    query, key, _ = draw(5, 5)
    got = weights(key_alone_attention, query, key)
    assert torch.allclose(got, got[..., :1, :].expand_as(got))
    score = (torch.nn.functional.silu(query) * key).sum(-1) / 2
    assert torch.allclose(got[..., 0, :], torch.softmax(score, -1))


def test_learnt_weights_are_the_softmax_of_the_table_and_start_equal():
    query, key, value = draw(5, 5)
    fresh = LearntMap(heads=2, max_length=7)
    assert torch.allclose(
        fresh(query, key, value, is_causal=True),
        uniform_attention(query, key, value, is_causal=True),
    )
    torch.nn.init.normal_(fresh.table)
    wanted = torch.softmax(fresh.table[:, :5, :5].double(), -1) @ value
    assert torch.allclose(fresh(query, key, value), wanted)


def test_a_map_counts_its_rows_from_the_offset_of_a_decoding_step():
    table = RandomMap(heads=2, max_length=9, seed=1)
    query, key, value = draw(6, 6)
    whole = table(query, key, value, is_causal=True)
    last = table(query[..., 5:, :], key, value, is_causal=True, query_offset=5)
    assert torch.allclose(last, whole[..., 5:, :])


def test_a_random_map_is_never_learnt_and_follows_its_seed():
    one, two = (RandomMap(heads=2, max_length=5, seed=seed) for seed in (1, 2))
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert torch.equal(one.table, RandomMap(heads=2, max_length=5, seed=1).table)
    assert not torch.equal(one.table, two.table)


def test_taylor_weights_by_hand():
    got = taylor(torch.tensor([0.0, 1.0, -1.0, 9.0]), torch.tensor([True, True, True, False]))
    assert torch.allclose(got, torch.tensor([1.0, 2.5, 0.5, 0.0]) / 4)


def test_taylor_weights_near_zero_scores_are_nearly_softmax():
    query, key, value = draw(5, 5)
    query = 0.01 * query
    assert (approximate_attention(query, key, value) - attend(query, key, value)).abs().max() < 1e-5


def test_the_gated_perceptron_has_the_parameters_of_an_attention_layer():
    count = sum(parameter.numel() for parameter in GatedPerceptron(48).parameters())
    assert count == 4 * 48**2
    x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    layer = GatedPerceptron(4)
    gate, up, down = layer.gate.weight, layer.up.weight, layer.down.weight
    inner = x @ gate.T
    assert torch.allclose(layer(x), (inner * torch.sigmoid(inner) * (x @ up.T)) @ down.T, atol=1e-6)


def test_without_a_guide_guided_attention_is_multi_head_attention():
    usual = MultiHeadAttention(8, 2, position="rope", is_causal=True)
    layer = GuidedAttention(8, 2, position="rope", is_causal=True)
    layer.load_state_dict(usual.state_dict())
    x, guide = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(x), usual(x)) and torch.allclose(layer(x, x), usual(x))
    _, weights = layer(x, guide, return_weights=True)
    _, wanted = usual(guide, return_weights=True)
    assert torch.allclose(weights, wanted)


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("standard", [(), (1,)])
def test_no_model_sees_the_future(model, name, standard):
    build = model(name, standard=standard)
    changed = TEXTS.clone()
    changed[:, 5:] = (changed[:, 5:] + 3) % 11
    before, after = build(TEXTS), build(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-12)
    assert before.shape == (3, 9, 11) and build(TEXTS[:, :1]).isfinite().all()


@pytest.mark.parametrize("name", ABLATIONS)
def test_only_models_that_mix_notice_an_earlier_token(model, name):
    changed = TEXTS.clone()
    changed[:, 2] = (changed[:, 2] + 3) % 11
    moved = (model(name)(TEXTS) - model(name)(changed))[:, 3:].abs().max() > 1e-9
    assert moved.item() is (name not in ("gated perceptron", "own value"))


def fixed_maps(build, texts):
    """The first layer's weights, which a hook takes from the queries and keys."""
    seen = {}

    def keep(module, args, options, out):
        guide = args[1] if len(args) > 1 else args[0]
        seen["weights"] = module.__class__.forward(module, args[0], guide, return_weights=True)[1]

    handle = build.blocks[-1].attention.register_forward_hook(keep, with_kwargs=True)
    build(texts)
    handle.remove()
    return seen["weights"]


def test_a_random_guide_gives_the_same_weights_for_all_texts_and_they_are_learnt(model):
    build = model("random guide")
    one, two = fixed_maps(build, TEXTS), fixed_maps(build, (TEXTS + 1) % 11)
    assert torch.allclose(one, two) and torch.allclose(one, one[:1].expand_as(one))
    build(TEXTS).square().mean().backward()
    for block in build.blocks:
        assert block.attention.to_query.weight.grad.abs().max() > 0
    assert "noise" not in dict(build.named_parameters())


def test_a_random_guide_passes_through_the_layers_below(model):
    build = model("random guide")
    one = fixed_maps(build, TEXTS)
    with torch.no_grad():
        build.blocks[0].attention.to_value.weight.mul_(3)
    assert not torch.allclose(one, fixed_maps(build, TEXTS))


def test_an_embedding_guide_gives_weights_that_the_layers_below_do_not_move(model):
    build = model("embedding guide")
    one = fixed_maps(build, TEXTS)
    with torch.no_grad():
        build.blocks[0].attention.to_value.weight.mul_(3)
        build.blocks[0].perceptron[0].weight.mul_(3)
    assert torch.allclose(one, fixed_maps(build, TEXTS))
    assert not torch.allclose(one, fixed_maps(build, (TEXTS * 2 + 1) % 11))


def test_a_hybrid_with_all_layers_standard_is_the_usual_model(model):
    usual = DecoderLM(11, **SIZES).double()
    for name in ABLATIONS:
        assert torch.allclose(model(name, standard=(0, 1))(TEXTS), usual(TEXTS))


def test_ablation_replaces_the_other_layers_with_new_ones_and_keeps_the_random_state():
    before = torch.random.get_rng_state()
    build = ablate(DecoderLM(11, **SIZES), lambda i: GatedPerceptron(8), standard=(1,), seed=3)
    again = ablate(DecoderLM(11, **SIZES), lambda i: GatedPerceptron(8), standard=(1,), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert isinstance(build.blocks[0].attention, GatedPerceptron)
    assert isinstance(build.blocks[1].attention, MultiHeadAttention)
    assert torch.equal(build(TEXTS), again(TEXTS))


def test_wrong_input_is_named():
    query, key, value = draw(3, 5)
    for operator in (own_value, key_alone_attention):
        with pytest.raises(ValueError, match=r"key must have as many tokens as query \(3\), got 5"):
            operator(query, key, value)
    with pytest.raises(ValueError, match="at most max_length=4 long, got positions up to 5"):
        LearntMap(heads=2, max_length=4)(query, key, value)
    with pytest.raises(ValueError, match="heads must be at least 1"):
        LearntMap(heads=0, max_length=4)
    with pytest.raises(ValueError, match=r"standard must name blocks in 0 \.\.\. 1, got"):
        ablate(DecoderLM(11, **SIZES), lambda i: GatedPerceptron(8), standard=(2,))
    with pytest.raises(ValueError, match="at most max_length=12 long, got 13"):
        ABLATIONS["random guide"](11, **SIZES)(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="return_weights must be False"):
        ABLATIONS["gated perceptron"](11, **SIZES)(TEXTS, return_weights=True)
