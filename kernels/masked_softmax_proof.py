"""How masked_softmax is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Iterator

import torch
from attnlib.kernels.masked_softmax import (
    LARGEST_KEY_BLOCK,
    backward_kernel,
    forward_kernel,
    masked_softmax,
    tile,
)
from attnlib.kernels.proof import Case, Launch, Proof
from torch import Tensor

LENGTHS = (1, 15, 63, 100, 257)
LONGER_THAN_A_BLOCK = 2 * LARGEST_KEY_BLOCK + 5


def reference(scores: Tensor, support: Tensor) -> Tensor:
    """The definition in plain torch; minus infinity outside, zero for a row with empty support."""
    inside = torch.where(support, scores, -torch.inf)
    empty = ~support.any(-1, keepdim=True)
    return torch.softmax(inside.masked_fill(empty, 0.0), -1).masked_fill(~support, 0.0)


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths, and each layout and support that has its own way to go wrong."""
    draw = torch.Generator().manual_seed(1)

    def scores(*shape: int, size: float = 1.0) -> Tensor:
        values = size * torch.randn(shape, generator=draw, dtype=torch.float64)
        return values.to(device, dtype).requires_grad_()

    def support(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=draw) < 0.6).to(device)

    for keys in LENGTHS:
        yield Case(f"{keys} keys", (scores(2, 3, keys), support(2, 3, keys)))
        everything = torch.ones((), dtype=torch.bool, device=device)
        yield Case(f"{keys} keys, full support", (scores(3, keys), everything))
    keys = LONGER_THAN_A_BLOCK
    rising = (scores(2, keys).detach() + torch.linspace(-9, 9, keys, device=device)).to(dtype)
    yield Case("longer than a block, maximum rises", (rising.requires_grad_(), support(2, keys)))
    late = torch.arange(keys, device=device) >= LARGEST_KEY_BLOCK
    yield Case("longer than a block, first block outside", (scores(2, keys), late))
    yield Case("empty support", (scores(2, 63), torch.zeros(63, dtype=torch.bool, device=device)))
    one_key = torch.eye(15, 63, dtype=torch.bool, device=device)
    yield Case("one key in the support", (scores(15, 63), one_key))
    yield Case("some rows empty", (scores(2, 5, 63), support(5, 1)))
    yield Case("support shared by heads", (scores(2, 3, 4, 15), support(2, 1, 4, 15)))
    yield Case("support expanded over heads", (scores(3, 4, 15), support(4, 15).expand(3, 4, 15)))
    columns = scores(63, 2, 3).detach().permute(1, 2, 0).requires_grad_()
    yield Case("keys not adjacent", (columns, support(63, 3).T))
    part = scores(3, 4, 100).detach()[:, ::2, 5:68].requires_grad_()
    yield Case("rows of a wider tensor", (part, support(2, 100)[:, 5:68]))
    yield Case("scores up to 1e4", (scores(4, 100, size=2.5e3), support(4, 100)))
    if device.type == "cuda":
        yield Case("many rows", (scores(8, 16, 257, 1025), support(8, 1, 257, 1025)))


def launches() -> Iterator[Launch]:
    """Every dtype at the largest block, and the smallest block."""
    for pointer, dtype, key_count in [
        ("*fp64", torch.float64, LARGEST_KEY_BLOCK),
        ("*fp32", torch.float32, LARGEST_KEY_BLOCK),
        ("*fp16", torch.float16, LARGEST_KEY_BLOCK),
        ("*bf16", torch.bfloat16, LARGEST_KEY_BLOCK),
        ("*fp32", torch.float32, 1),
    ]:
        constants = tile(key_count, dtype)
        num_warps = constants.pop("num_warps")
        forward = {
            "scores_ptr": pointer,
            "support_ptr": "*i1",
            "support_row_ptr": "*i64",
            "weights_ptr": pointer,
            "key_count": "i32",
            "scores_row_step": "i32",
            "support_row_step": "i32",
            "support_key_step": "i32",
        }
        backward = {
            "weights_ptr": pointer,
            "grad_weights_ptr": pointer,
            "grad_scores_ptr": pointer,
            "key_count": "i32",
            "grad_weights_row_step": "i32",
        }
        name = f"{pointer[1:]}, block {constants['key_block_size']}"
        yield Launch(f"forward, {name}", forward_kernel, forward, constants, num_warps)
        yield Launch(f"backward, {name}", backward_kernel, backward, constants, num_warps)


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """About 2^28 scores a case: short rows, a usual row, and rows longer than a block."""
    for batch, heads, queries, keys in [
        (64, 16, 2048, 128),
        (4, 16, 2048, 2048),
        (1, 16, 2048, 8192),
    ]:
        scores = torch.randn(batch, heads, queries, keys, device=device, dtype=dtype)
        causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        everything = torch.ones(queries, keys, dtype=torch.bool, device=device)
        shape = f"B{batch} H{heads} N{queries} M{keys}"
        yield Case(f"{shape}, full support", (scores.requires_grad_(), everything))
        if keys >= queries:
            yield Case(f"{shape}, causal", (scores, causal))


def bytes_moved(scores: Tensor, support: Tensor) -> dict[str, int]:
    """Forward reads scores and support and writes weights; backward reads two and writes one."""
    row = scores.numel() * scores.element_size()
    return {"forward": 2 * row + support.numel(), "backward": 3 * row}


PROOF = Proof(
    name="masked_softmax",
    kernel=masked_softmax,
    reference=reference,
    cases=cases,
    launches=tuple(launches()),
    timed_cases=timed_cases,
    bytes_moved=bytes_moved,
)
