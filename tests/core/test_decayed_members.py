"""Lightning attention, retention, gates, HGRN-2 and Mamba-2: one operator, other decays."""

import math

import pytest
import torch

from attnlib.memory.decayed_state import decayed_attention, decayed_attention_dense
from attnlib.memory.gated_linear import channel_gate, gated_linear_attention
from attnlib.memory.hgrn2 import (
    hgrn2_attention,
    hgrn2_attention_dense,
    hgrn2_attention_step,
    tied_gates,
)
from attnlib.memory.lightning import lightning_attention, lightning_decay
from attnlib.memory.retention import retention, retention_decay
from attnlib.memory.state_space_duality import (
    state_space_duality,
    state_space_duality_dense,
    state_space_duality_step,
)
from attnlib.models import MultiHeadAttention
from attnlib.models import decayed_heads as heads

LENGTHS = (1, 15, 63, 100, 257)
SHORT = ((1, 300), (15, 4), (63, 16), (100, 64), (257, 64))


def draw(length, count=2, width=4, value_width=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    shapes = [(count, length, w) for w in (width, width, value_width)]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


def assert_same(got, wanted):
    size = max(1.0, wanted.abs().max().item())
    assert (got - wanted).abs().max().item() <= 1e-12 * size


def assert_same_gradients(got, wanted, inputs):
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [
        torch.autograd.grad((x * probe).sum(), inputs, retain_graph=True) for x in (got, wanted)
    ]
    for ours, theirs in zip(*slopes, strict=True):
        assert_same(ours, theirs)


def test_lightning_decays_are_those_of_its_paper():
    decay = lightning_decay(4, layer=1, layers=2).exp()
    assert decay[:, 0].tolist() == pytest.approx([1.0, *(math.exp(-h) for h in (1, 2, 3))])
    assert lightning_decay(8)[-1].item() == pytest.approx(-7.0)


def test_retention_decays_are_those_of_its_paper():
    gamma = retention_decay(3).exp()[:, 0].tolist()
    assert gamma == pytest.approx([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128], rel=1e-15)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("operator", "decays"), [(lightning_attention, lightning_decay), (retention, retention_decay)]
)
def test_a_fixed_decay_is_a_masked_product(operator, decays, length):
    query, key, value = inputs = draw(length)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    mask = (decays(2)[..., None] * distance.clamp(min=0)).exp() * (distance >= 0)
    wanted = (query @ key.mT / 2 * mask.double()) @ value
    for chunk in (1, 16, 300) if length < 100 else (64, 300):
        got = operator(query, key, value, chunk=chunk)
        assert_same(got, wanted)
        assert_same_gradients(got, wanted, inputs)


def test_decays_of_the_first_head_differ_from_those_of_the_last():
    query, key, value = draw(15)
    for operator in (lightning_attention, retention):
        first = operator(query, key, value)[0]
        alone = operator(query[0], key[0], value[0])
        assert torch.allclose(first, alone)
        swapped = operator(query.flip(0), key.flip(0), value.flip(0))[1]
        assert not torch.allclose(first, swapped, rtol=1e-3)


def test_the_gates_of_gated_linear_attention_are_near_one_and_below():
    gate = channel_gate(torch.tensor([0.0, -30.0, 30.0], dtype=torch.float64)).exp()
    assert gate.tolist() == pytest.approx([0.5 ** (1 / 16), math.exp(-30 / 16), 1.0], rel=1e-9)


@pytest.mark.parametrize(("length", "chunk"), SHORT)
def test_gates_by_channel_fade_each_row_of_the_state(length, chunk):
    query, key, value = inputs = draw(length)
    gate = channel_gate(draw(length + 1)[0][:, :length]).detach().requires_grad_()
    got, state = gated_linear_attention(
        query, key, value, log_decay=gate, chunk=chunk, return_state=True
    )
    assert_same(got, decayed_attention_dense(query, key, value, log_decay=gate))
    held = torch.zeros_like(state)
    for t in range(length):
        held = gate[:, t, :, None].exp() * held + key[:, t, :, None] * value[:, t, None, :]
    assert_same(state, held)
    assert_same_gradients(
        got, decayed_attention_dense(query, key, value, log_decay=gate), [*inputs, gate]
    )


@pytest.mark.parametrize("lower_bound", [0.0, 0.25])
@pytest.mark.parametrize(("length", "chunk"), SHORT)
def test_hgrn2_writes_what_it_forgets(length, chunk, lower_bound):
    query, logits, value = inputs = draw(length)
    forget = lower_bound + (1 - lower_bound) * logits.sigmoid()
    held, rows, state = torch.zeros(2, 4, 3, dtype=torch.float64), [], None
    for t in range(length):
        f = forget[:, t, :, None]
        held = f * held + (1 - f) * value[:, t, None, :]
        rows.append((query[:, t, None, :] / 2 @ held).squeeze(-2))
        token = (x[:, t : t + 1] for x in inputs)
        read, state = hgrn2_attention_step(state, *token, lower_bound=lower_bound)
        assert_same(read[:, 0], rows[-1])
    wanted = torch.stack(rows, 1)
    got = hgrn2_attention(*inputs, lower_bound=lower_bound, chunk=chunk)
    assert_same(got, wanted)
    assert_same(hgrn2_attention_dense(*inputs, lower_bound=lower_bound), wanted)
    assert_same_gradients(got, wanted, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_gates_stay_in_range_for_extreme_logits(dtype):
    logits = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4], dtype=dtype)
    for bound in (0.0, 1e-3, 0.999):
        key, log_forget = tied_gates(logits, bound)
        assert ((key >= 0) & (key <= 1)).all()
        assert ((log_forget <= 0) & log_forget.isfinite()).all()
    key, log_forget = tied_gates(torch.tensor([30.0]))
    assert key.item() == pytest.approx(math.exp(-30), rel=1e-6)  # 1 - f would be zero
    assert log_forget.item() == pytest.approx(-math.exp(-30), rel=1e-6)


@pytest.mark.parametrize(("length", "chunk"), SHORT)
def test_the_two_sides_of_the_duality_agree(length, chunk):
    query, key, value = inputs = draw(length)
    step = draw(length + 1)[0][:, :length, 0].exp().detach().requires_grad_()
    rate = torch.tensor([[0.5], [2.0]], dtype=torch.float64, requires_grad=True)
    options = {"step": step, "rate": rate}
    got = state_space_duality(*inputs, **options, chunk=chunk)
    wanted = state_space_duality_dense(*inputs, **options)
    assert_same(got, wanted)
    assert_same_gradients(got, wanted, [*inputs, step, rate])
    held, state = torch.zeros(2, 4, 3, dtype=torch.float64), None
    for t in range(length):
        now = step[:, t, None, None]
        held = (-now * rate[..., None]).exp() * held
        held = held + now * key[:, t, :, None] * value[:, t, None, :]
        token = (x[:, t : t + 1] for x in inputs)
        read, state = state_space_duality_step(state, *token, step=step[:, t : t + 1], rate=rate)
        assert_same(read[:, 0], (query[:, t, None, :] / 2 @ held).squeeze(-2))
    assert_same(got[:, -1], read[:, 0])


@pytest.mark.parametrize("operator", [lightning_attention, retention, hgrn2_attention])
def test_members_pass_their_state_on(operator):
    inputs = draw(37)
    whole, final = operator(*inputs, return_state=True)
    first, state = operator(*(x[:, :20] for x in inputs), return_state=True)
    second, state = operator(*(x[:, 20:] for x in inputs), initial_state=state, return_state=True)
    assert_same(torch.cat((first, second), 1), whole)
    assert_same(state, final)


@pytest.mark.parametrize("length", [3, 15])
def test_members_run_on_the_kernel(length):
    pytest.importorskip("triton")
    inputs = draw(length)
    gate = channel_gate(inputs[1])
    calls = (
        lambda backend: lightning_attention(*inputs, backend=backend),
        lambda backend: retention(*inputs, backend=backend),
        lambda backend: gated_linear_attention(*inputs, log_decay=gate, backend=backend),
        lambda backend: hgrn2_attention(*inputs, lower_bound=0.2, backend=backend),
        lambda backend: state_space_duality(*inputs, step=torch.tensor(0.3), backend=backend),
    )
    for call in calls:
        assert_same(call("triton"), call("torch"))
        assert_same_gradients(call("triton"), call("torch"), inputs)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda q, k, v: lightning_decay(0), ValueError, "heads"),
        (lambda q, k, v: lightning_decay(4, layer=2, layers=2), ValueError, "layer must be less"),
        (lambda q, k, v: retention_decay(0.5), TypeError, "heads"),
        (lambda q, k, v: retention(q, k, v, log_decay=0.1), ValueError, "log_decay must lie in"),
        (lambda q, k, v: hgrn2_attention(q, k, v, lower_bound=1.0), ValueError, "lower_bound"),
        (lambda q, k, v: hgrn2_attention(q, k, v, lower_bound=None), TypeError, "lower_bound"),
        (lambda q, k, v: state_space_duality(q, k, v, step=-torch.ones(())), ValueError, "step"),
        (lambda q, k, v: state_space_duality(q, k, v, step=torch.ones(7)), ValueError, "step"),
        (lambda q, k, v: state_space_duality(q, k, v, step=0.3), TypeError, "step"),
        (
            lambda q, k, v: state_space_duality(q, k, v, step=torch.ones(()), rate=math.inf),
            ValueError,
            "rate",
        ),
    ],
)
def test_wrong_gates_are_refused_by_name(call, kind, message):
    with pytest.raises(kind, match=message):
        call(*(x.detach().float() for x in draw(15)))


MODULES = (
    heads.Retained,
    heads.Lightning,
    heads.GatedLinearAttention,
    heads.StateSpaceDuality,
    heads.HierarchicallyGated,
    heads.Additive,
)


@pytest.mark.parametrize("module", MODULES)
def test_every_layer_learns_and_sees_no_future(module):
    torch.manual_seed(0)
    layer = MultiHeadAttention(8, 2, operator=module, is_causal=True)
    x = torch.randn(2, 9, 8)
    read = layer(x)
    read.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    changed = x.clone()
    changed[:, 6:] += 1
    assert torch.allclose(layer(changed)[:, :6], read[:, :6], atol=1e-5)
    assert not torch.allclose(layer(changed)[:, 6:], read[:, 6:], atol=1e-2)


def test_the_norm_makes_a_scale_of_the_read_immaterial():
    query, key, value = draw(15)
    wanted = heads.Retained(4)(query, key, value)
    assert torch.allclose(wanted.square().mean(-1), torch.ones(2, 15, dtype=torch.float64))
    assert torch.allclose(heads.Retained(4)(7 * query, key, value), wanted)


def test_no_decay_at_all_is_the_sum_of_the_past():
    query, key, value = draw(15)
    got = decayed_attention(query, key, value, scale=1.0)
    assert_same(
        got, torch.einsum("htd,htde->hte", query, (key[..., None] * value[..., None, :]).cumsum(1))
    )


def test_a_slowness_that_lets_gates_grow_is_refused():
    for slowness, kind in ((0.0, ValueError), (-1.0, ValueError), ("16", TypeError)):
        with pytest.raises(kind, match="slowness must be"):
            channel_gate(torch.zeros(2), slowness)


@pytest.mark.parametrize("form", (state_space_duality_dense, state_space_duality))
def test_the_duality_names_what_is_no_tensor_or_no_rate(form):
    query = torch.ones(2, 3, 4)
    with pytest.raises(TypeError, match=r"(query|value) must be a torch\.Tensor"):
        form("x", "x", "x", step=torch.ones(1))
    for rate in (True, "fast"):
        with pytest.raises(TypeError, match="rate must be"):
            form(query, query, query, step=torch.ones(1), rate=rate)


def test_queries_without_channels_read_zero():
    none, value = torch.ones(2, 3, 0), torch.ones(2, 3, 4)
    for form in (decayed_attention, decayed_attention_dense):
        assert torch.equal(form(none, none, value, log_decay=-0.1), torch.zeros_like(value))
