"""Flash attention is the same function in both forms, and says why where the kernel cannot run."""

import importlib

import pytest
import torch

from attnlib import attend, flash_attention
from attnlib.support import window

pytest.importorskip("triton")
form = importlib.import_module("attnlib.read.flash_attention")
rule = importlib.import_module("attnlib.backend")
kernels = importlib.import_module("attnlib.kernels")
CUDA = torch.device("cuda")


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


def assert_same_read_and_gradients(got, wanted, inputs):
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_kernel_gives_the_read_and_the_gradients_of_attend(length, is_causal):
    inputs = draw(length, length + 2, batch=1)
    got = flash_attention(*inputs, is_causal=is_causal, backend="triton")
    assert_same_read_and_gradients(got, attend(*inputs, is_causal=is_causal), inputs)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("offset", [0, 7])
def test_a_window_is_the_last_keys_of_each_query(backend, offset):
    inputs = draw(20, 30)
    options = {"query_offset": offset}
    wanted = attend(*inputs, support=window(5), **options)
    got = flash_attention(*inputs, window=5, backend=backend, **options)
    assert_same_read_and_gradients(got, wanted, inputs)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_groups_share_a_key_head_and_scale_is_kept(backend):
    inputs = draw(9, 15, heads=4)
    options = {"enable_gqa": True, "scale": 0.3, "is_causal": True, "query_offset": 6}
    got = flash_attention(*inputs, backend=backend, **options)
    assert_same_read_and_gradients(got, attend(*inputs, **options), inputs)


def padding(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6


MASKS = {
    "each sequence": padding(2, 1, 1, 15),
    "all sequences": padding(15),
    "one row": padding(1, 15),
    "expanded over heads and queries": padding(2, 1, 1, 15).expand(2, 2, 9, 15),
    "expanded over queries": padding(2, 1, 1, 15).expand(2, 1, 9, 15),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_padding_of_the_keys_is_followed_by_both_forms(name, backend):
    inputs = draw(9, 15)
    got = flash_attention(*inputs, attn_mask=MASKS[name], backend=backend)
    assert_same_read_and_gradients(got, attend(*inputs, attn_mask=MASKS[name]), inputs)


def test_a_single_head_may_have_a_padding_too():
    query, key, value = (x[0, 0] for x in draw(9, 15))
    mask = padding(1, 15)
    got = flash_attention(query, key, value, attn_mask=mask, backend="triton")
    assert torch.allclose(got, attend(query, key, value, attn_mask=mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 15), (2, 1, 15), (2, 2, 1, 15), (9, 1)])
def test_another_mask_is_pytorch_for_auto_and_a_reason_for_triton(monkeypatch, shape):
    inputs, mask = draw(9, 15), padding(*shape)
    with pytest.raises(ValueError, match=r"the same for all queries and heads.*got \("):
        flash_attention(*inputs, attn_mask=mask, backend="triton")
    calls = on_a_new_chip(monkeypatch)
    got = flash_attention(*inputs, attn_mask=mask)
    assert not calls
    assert torch.allclose(got, attend(*inputs, attn_mask=mask), rtol=0, atol=1e-12)


def test_a_head_too_wide_is_pytorch_for_auto_and_a_reason_for_triton(monkeypatch):
    inputs = [torch.ones(1, 3, 257)] * 3
    with pytest.raises(ValueError, match="widths from 1 to 256, got D = 257"):
        flash_attention(*inputs, backend="triton")
    calls = on_a_new_chip(monkeypatch)
    assert torch.allclose(flash_attention(*inputs), inputs[2])
    assert not calls


def on_a_new_chip(monkeypatch):
    """Take tensors for ones on a chip that can run kernels; the list of calls of the kernel."""
    monkeypatch.setattr(rule, "obstacle", lambda device: None)
    real, kernel, calls = rule.runs_kernel, kernels.flash_attention, []
    monkeypatch.setattr(form, "runs_kernel", lambda name, _, why: real(name, CUDA, why))

    def spy(*tensors, **options):
        calls.append(tensors)
        return kernel(*tensors, **options)

    monkeypatch.setattr(kernels, "flash_attention", spy)
    return calls


def test_auto_runs_the_kernel_on_a_gpu_and_torch_never_does(monkeypatch):
    calls = on_a_new_chip(monkeypatch)
    inputs = draw(9, 15)
    assert_same_read_and_gradients(flash_attention(*inputs), attend(*inputs), inputs)
    assert len(calls) == 1
    flash_attention(*inputs, backend="torch")
    assert len(calls) == 1


def test_rows_whose_numbers_lie_apart_are_copied_for_the_kernel(monkeypatch):
    calls = on_a_new_chip(monkeypatch)
    inputs = draw(9, 15)
    apart = [x.mT.contiguous().mT for x in inputs]
    assert_same_read_and_gradients(flash_attention(*apart), attend(*inputs), inputs)
    assert all(tensor.stride(-1) == 1 for tensor in calls[0])


def test_tensors_on_a_cpu_run_pytorch(monkeypatch):
    monkeypatch.setattr(kernels, "flash_attention", None)
    inputs = draw(9, 15)
    assert torch.allclose(flash_attention(*inputs), attend(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "kind", "name"),
    [
        ({"window": 0}, ValueError, "window"),
        ({"window": 2.5}, TypeError, "window"),
        ({"query_offset": -1}, ValueError, "query_offset"),
        ({"attn_mask": torch.ones(3, 15, dtype=torch.bool)}, ValueError, "attn_mask"),
    ],
)
def test_wrong_options_are_refused_by_name_before_a_form_is_chosen(options, kind, name):
    for backend in ("torch", "triton"):
        with pytest.raises(kind, match=name):
            flash_attention(*draw(9, 15), backend=backend, **options)


def test_a_chip_without_room_for_a_tile_is_left_to_pytorch(monkeypatch):
    launch = importlib.import_module("attnlib.kernels.launch")
    query, _, value = draw(9, 15)
    monkeypatch.setattr(launch, "shared_memory_of", lambda device: 10_000)
    assert "10000 bytes of shared memory" in form.why_not_kernel(query, value, None)
    monkeypatch.setattr(launch, "shared_memory_of", lambda device: 232_448)
    assert form.why_not_kernel(query, value, None) is None
