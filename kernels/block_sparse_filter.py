"""Block-sparse attention that leaves out more while it runs: the filter of SpargeAttn.

Flash attention knows for each row i the largest score so far, m_i. A tile whose scores all lie far
below it has weights exp(s_ij - m_i) near zero, and its values hardly change the read:

    tile left out  <=>  max_i (max_j s_ij - m_i) < log(skip_below)        i, j in the tile

Its scores are computed (that is how it is known) and its weights are counted in the normalizer. But
its values are neither loaded nor multiplied: half of the work of a tile, and half of its bytes. No
row of such a tile has a new maximum, so nothing that was summed before has to shrink.

The bound. A weight left out is below skip_below relative to m_i when it is left out, and m_i only
grows. The normalizer relative to m_i is at least 1: the largest score is in it. So with n_i keys
left out for row i,

    |o'_i - o_i| <= e_i max_j |v_j|,     e_i = sum_{j left out} p_ij < n_i skip_below

in each column, o' with the filter and o without; e_i is the left-out mass relative to the
normalizer.

The kernel is `forward_kernel` of block_sparse_attention.py: the filter is the condition under which
it loads values. What is left out depends on the order of the tiles: early ones, when m_i is small
still, are read more often. Our order is ascending, full tiles before partial ones.

Source: Zhang et al., "SpargeAttn", 2025, arXiv 2502.18137, section 3.4 and algorithm 1, lines 13 to
17. There each warp decides for its own rows of the tile; here the tile is one decision. Their
lambda < 0 is log(skip_below).
"""

from typing import NamedTuple

import torch
from attnlib.kernels.block_lists import BlockLists
from attnlib.kernels.block_sparse_attention import checked, forward_kernel, read_and_log_sum
from attnlib.kernels.launch import readable
from torch import Tensor


class FilteredRead(NamedTuple):
    """What was read, and how many of the tiles of each query block were left out of how many.

    Shapes: read (*batch, H, N, E); skipped and visited (*batch, H, ceil(N / Bq)), int32. A tile is
    what the chip multiplies at once, a block of the list or a part of it. Tiles that causality
    hides are not visited.
    """

    read: Tensor
    skipped: Tensor
    visited: Tensor


def filtered_block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor | BlockLists,
    *,
    block_size: int | tuple[int, int],
    skip_below: float,
    is_causal: bool = False,
    query_offset: int = 0,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> FilteredRead:
    """block_sparse_attention without the values of tiles whose weights are all below skip_below.

    A tile is left out where max_i (max_j s_ij - m_i) < log(skip_below), m_i the running maximum of
    row i after this tile. Its weights stay in the normalizer. In each column the read then differs
    by at most n skip_below max_j |v_j|, n the number of keys left out. skip_below: between 0 and 1.
    All else as in block_sparse_attention, but no gradient.

    Raises what block_sparse_attention raises; ValueError for a skip_below that is not between 0
    and 1, and where a gradient would have to flow.
    """
    if not (isinstance(skip_below, float) and 0.0 < skip_below < 1.0):
        raise ValueError(f"skip_below must be a number between 0 and 1, got {skip_below!r}")
    inputs = checked(
        query, key, value, blocks, block_size, is_causal, query_offset, key_mask, scale
    )
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient and filtered_block_sparse_attention has none: "
                "call it under torch.no_grad(), or use block_sparse_attention"
            )
    inputs = (*(readable(forward_kernel, tensor) for tensor in inputs[:3]), *inputs[3:])
    read, _, skipped, visited = read_and_log_sum(*inputs, skip_below=skip_below)
    shape = query.shape[:-1]
    return FilteredRead(
        read.to(query.dtype).view(*shape, value.shape[-1]),
        *(count.view(*shape[:-1], count.shape[-1]) for count in (skipped, visited)),
    )
