"""Reweaving: nothing changes behind a closed gate, the past stays causal, all layers are heard."""

import pytest
import torch

from attnlib.models.language import DecoderLM
from attnlib.models.layer_reweaving import LayerReweaving, ReweavingLM


@pytest.fixture
def model():
    return DecoderLM(11, width=16, layers=3, seed=1)


TOKENS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))


def test_with_the_gate_at_zero_the_logits_are_those_of_the_model_bit_for_bit(model):
    woven = ReweavingLM(model)
    assert torch.equal(woven(TOKENS), model(TOKENS))
    with torch.no_grad():
        woven.reweaving.gate.fill_(0.5)
    assert not torch.allclose(woven(TOKENS), model(TOKENS))


def test_an_open_gate_lets_no_token_see_its_future(model):
    woven = ReweavingLM(model)
    with torch.no_grad():
        woven.reweaving.gate.fill_(1.0)
    changed = TOKENS.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    torch.testing.assert_close(woven(changed)[:, :6], woven(TOKENS)[:, :6])
    assert not torch.allclose(woven(changed)[:, 6:], woven(TOKENS)[:, 6:])


def test_the_woven_memory_is_the_weighted_sum_of_the_unfolded_states():
    torch.manual_seed(0)
    layer = LayerReweaving(4, 2).double()
    with torch.no_grad():
        layer.log_share.copy_(torch.tensor([0.0, 1.0]))
    states = [torch.randn(1, 3, 4).double() for _ in range(2)]
    share = torch.tensor([0.0, 1.0]).double().softmax(0)
    wanted = sum(s * h @ u.weight.T for s, h, u in zip(share, states, layer.unfold, strict=True))
    torch.testing.assert_close(layer.woven(states), wanted)


def test_a_wrong_number_of_states_and_a_single_block_are_refused(model):
    layer = LayerReweaving(16, 2)
    with pytest.raises(ValueError, match="states must come from 2 layers, got 1"):
        layer(torch.zeros(1, 3, 16), [torch.zeros(1, 3, 16)])
    with pytest.raises(ValueError, match="model must have at least 2 blocks"):
        ReweavingLM(DecoderLM(11, width=16, layers=1))
    with pytest.raises(ValueError, match="layers must be at least 1"):
        LayerReweaving(16, 0)
