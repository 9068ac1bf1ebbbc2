"""The peers that the attention kernels name compute what their references compute."""

import warnings

import pytest
import torch
from attnlib.kernels import benchmark, peers
from attnlib.kernels.benchmark import Limits
from attnlib.kernels.proof import Case, all_proofs
from torch.nn.attention.flex_attention import flex_attention

CPU = torch.device("cpu")
FLASH, DECODE = (all_proofs()[name] for name in ("flash_attention", "split_decode"))


@pytest.fixture(autouse=True)
def flex_uncompiled(monkeypatch):
    """FlexAttention as it is, with no minute of compilation."""
    monkeypatch.setattr(
        peers,
        "flex_peer",
        lambda *problem: {"FlexAttention": peers.flex_read(flex_attention, *problem)},
    )


def tensors(*, queries, keys, heads=4, key_heads=4, gradients=False):
    draw = torch.Generator().manual_seed(2)
    shapes = (heads, queries), (key_heads, keys), (key_heads, keys)
    return tuple(
        torch.randn(2, *shape, 16, generator=draw).requires_grad_(gradients) for shape in shapes
    )


CASES = {
    "flash, full": (FLASH, tensors(queries=33, keys=33), {}),
    "flash, causal": (FLASH, tensors(queries=33, keys=33), {"is_causal": True}),
    "flash, shared": (FLASH, tensors(queries=33, keys=33, key_heads=2), {"is_causal": True}),
    "flash, window": (FLASH, tensors(queries=33, keys=33), {"is_causal": True, "window": 7}),
    "decode, one query": (DECODE, tensors(queries=1, keys=33, key_heads=2), {}),
    "decode, four queries": (DECODE, tensors(queries=4, keys=33, key_heads=2), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_peers_of_a_kernel_give_the_numbers_of_its_reference(name):
    proof, inputs, options = CASES[name]
    case = Case(name, (*inputs, options))
    exact = proof.reference(*case.arguments)
    named = proof.peers(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uncompiled, FlexAttention says that it is slow
        for peer in ("SDPA, math", "FlexAttention"):
            torch.testing.assert_close(named[peer](*case.arguments), exact, rtol=1e-5, atol=1e-5)


def test_a_case_of_attention_is_timed_beside_those_that_can_do_it():
    inputs = tensors(queries=15, keys=15, heads=1, key_heads=1, gradients=True)
    case = Case("15 keys, causal", (*inputs, {"is_causal": True}))
    limits = Limits(1e9, {"float32": 1e9})
    forward, backward = benchmark.time_case(
        FLASH, case, torch.float32, limits, lambda run: [run(), 1.0][1]
    )
    pairs = 2 * 15 * 16 // 2
    assert forward["operations"] == 2 * pairs * (16 + 16)
    assert backward["operations"] == 2.5 * forward["operations"]
    for row in (forward, backward):
        assert row["peers"]["plain torch"]["ms"] == row["peers"]["SDPA, math"]["ms"] == 1.0
        assert "error" in row["peers"]["SDPA, cuDNN"]
    assert "error" in backward["peers"]["FlexAttention"]  # it has no backward pass on a CPU
