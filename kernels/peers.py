"""What else computes softmax attention on a GPU: PyTorch's own forms, to be timed beside a kernel.

    scaled_dot_product_attention, each of its four backends by itself, and FlexAttention, compiled

Each takes the query, key and value of the case; what the support needs (a dense mask, the block
mask of FlexAttention) is made once, before any clock runs. A backend that cannot do a case raises,
and the benchmark reports why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "SDPA, flash": SDPBackend.FLASH_ATTENTION,
    "SDPA, memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA, math": SDPBackend.MATH,
}


class Support(NamedTuple):
    """Which keys a query sees: sees(b, h, i, j), and how many batch entries differ in it."""

    sees: Callable
    batch: int | None


def attention_peers(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    query_offset: int = 0,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> dict[str, Callable]:
    """The peers of flash_attention and split_decode by name, each a function of (q, k, v, ...).

    Shapes: query (B, H, N, D), key (B, Hkv, M, D), value (B, Hkv, M, E). Query i sees key j where
    j <= i + query_offset (if causal, or in a window), j > i + query_offset - window, and
    key_mask[b, j], a bool tensor that broadcasts to (B, M).
    """
    support = support_of(query, key, is_causal, query_offset, window, key_mask)
    return sdpa_peers(query, key, support, scale) | flex_peer(query, key, support, scale)


def support_of(
    query: Tensor,
    key: Tensor,
    is_causal: bool,
    query_offset: int,
    window: int | None,
    key_mask: Tensor | None,
) -> Support | None:
    """Which keys each query sees; None where every query sees every key.

    An edge of the band that lies outside the table, such as the causal edge of the last query
    alone, is left out: a form that takes no mask may then do the case.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    tests = []
    if (is_causal or window is not None) and query_offset < keys - 1:
        tests.append(lambda b, h, i, j: j <= i + query_offset)
    if window is not None and queries - 1 + query_offset - window >= 0:
        tests.append(lambda b, h, i, j: j > i + query_offset - window)
    if key_mask is not None:
        key_mask = key_mask.expand(query.shape[0], keys)
        tests.append(lambda b, h, i, j: key_mask[b, j])
    if not tests:
        return None

    def sees(b, h, i, j):
        seen = tests[0](b, h, i, j)
        for test in tests[1:]:
            seen = seen & test(b, h, i, j)
        return seen

    return Support(sees, batch=None if key_mask is None else query.shape[0])


def dense_mask(query: Tensor, key: Tensor, support: Support) -> Tensor:
    """The support as a bool tensor (B, 1, N, M), with B = 1 where batch entries do not differ."""
    device, shape = query.device, (support.batch or 1, 1, query.shape[-2], key.shape[-2])
    b, h, i, j = torch.meshgrid(*(torch.arange(n, device=device) for n in shape), indexing="ij")
    return support.sees(b, h, i, j)


def is_plain_causal(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    """Whether a mask says what is_causal says: as many queries as keys, none sees the future."""
    queries, keys = query.shape[-2], key.shape[-2]
    if queries != keys or mask.shape[0] > 1:
        return False
    return torch.equal(mask[0, 0], torch.ones_like(mask[0, 0]).tril())


def sdpa_peers(
    query: Tensor, key: Tensor, support: Support | None, scale: float | None
) -> dict[str, Callable]:
    """scaled_dot_product_attention by each backend alone. A causal square needs no mask."""
    mask = None if support is None else dense_mask(query, key, support)
    options = {"scale": scale, "enable_gqa": query.shape[-3] != key.shape[-3]}
    if mask is not None and is_plain_causal(query, key, mask):
        options["is_causal"] = True
    else:
        options["attn_mask"] = mask

    def read(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor, *more) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value, **options)

    return {name: partial(read, backend) for name, backend in BACKENDS.items()}


def flex_peer(
    query: Tensor, key: Tensor, support: Support | None, scale: float | None
) -> dict[str, Callable]:
    """FlexAttention, compiled for exactly these shapes.

    What was compiled for earlier cases is dropped: after eight shapes the compiler would fall back
    to the slow form without a word.
    """
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return {"FlexAttention": flex_read(compiled, query, key, support, scale)}


def flex_read(
    flex: Callable, query: Tensor, key: Tensor, support: Support | None, scale: float | None
) -> Callable:
    """`flex`, which is flex_attention or its compiled form, with the support as its block mask."""
    block_mask = None
    if support is not None:
        block_mask = create_block_mask(
            support.sees, support.batch, None, query.shape[-2], key.shape[-2], device=query.device
        )
    options = {
        "scale": scale,
        "block_mask": block_mask,
        "enable_gqa": query.shape[-3] != key.shape[-3],
    }
    return lambda query, key, value, *more: flex(query, key, value, **options)
