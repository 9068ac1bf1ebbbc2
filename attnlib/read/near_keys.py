"""Reads of near keys and a few listed ones, a run of queries at a time."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlib.attend import attend
from attnlib.backend import gradient_wanted
from attnlib.read.chunked_softmax import chunks
from attnlib.support import Support


def near_or_listed(width: int, listed: Int[Tensor, " L"]) -> Support:
    """The keys less than `width` places away, |i - j| < width, and the listed ones."""
    return Support(
        lambda b, h, q_idx, kv_idx: (
            ((q_idx - kv_idx).abs() < width) | torch.isin(kv_idx, listed.to(kv_idx.device))
        ),
        f"near_or_listed({width})",
    )


def read_near_and_listed(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    width: int,
    listed: Int[Tensor, " L"],
    *,
    attn_mask: Bool[Tensor, "*heads N M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    chunk: int = 128,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention over `near_or_listed` without the N x M matrix.

    .. math:: S_i = \{j : |i - j| < \text{width}\} \cup \text{listed}

    `chunk` neighboring queries share a run of near keys; to it are added the listed keys that lie
    outside. All heads have the same width and the same listed places. The backward pass computes
    each run again. Half precision is computed in float32. The caller checks the arguments; a mask
    comes expanded.

    Cost: time N (chunk + 2 width + L)(D + E), memory (N + M)(D + E) + chunk (chunk + 2 width + L).
    """
    keys = key.shape[-2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    support = near_or_listed(width, listed)

    def read_run(query: Tensor, key: Tensor, value: Tensor, rows: slice) -> Tensor:
        first, last = rows.start + query_offset, rows.stop - 1 + query_offset
        low = min(keys, max(0, first - width + 1))
        high = max(low, min(keys, last + 1 if is_causal else last + width))
        outside = listed[(listed < low) | ((listed >= high) & (listed < keys))]
        if is_causal:
            outside = outside[outside <= last]
        places = torch.cat((torch.arange(low, high, device=key.device), outside))
        q_idx = torch.arange(first, last + 1, device=key.device)[:, None]
        any_head = torch.zeros((), dtype=torch.long, device=key.device)
        allowed = support(any_head, any_head, q_idx, places)
        if is_causal:
            allowed = allowed & (places <= q_idx)
        if attn_mask is not None:
            allowed = allowed & attn_mask[..., rows, :][..., places]
        near = (slice(low, high), ...) if not len(outside) else (places, ...)
        key, value = (x.movedim(-2, 0)[near].movedim(0, -2).to(dtype) for x in (key, value))
        read = attend(query.to(dtype), key, value, attn_mask=allowed, scale=scale)
        return read.to(dtype=query.dtype)

    runs = chunks(query.shape[-2], chunk) or [slice(0, 0)]
    recompute = len(runs) > 1 and gradient_wanted(query, key, value)

    def run(rows: slice) -> Tensor:
        args = (query[..., rows, :], key, value, rows)
        return checkpoint(read_run, *args, use_reentrant=False) if recompute else read_run(*args)

    return torch.cat([run(rows) for rows in runs], dim=-2)
