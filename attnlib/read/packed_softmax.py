"""Softmax attention inside each of many sequences that lie end to end, without padding."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_scale


def packed_softmax_attention(
    query: Float[Tensor, "rows D"],
    key: Float[Tensor, "rows D"],
    value: Float[Tensor, "rows E"],
    *,
    starts: Int[Tensor, " sequences_plus_1"],
    is_causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "rows E"]:
    r"""o_i = sum_j w_ij v_j over the rows j of i's own sequence: rows starts[s] to starts[s + 1].

    Rows count from 0 in each sequence, so `is_causal` keeps the rows of the sequence up to i. A
    sequence may be empty. The PyTorch form calls SDPA once a sequence; the kernel reads them all
    in one launch.
    Cost: sum_s N_s^2 (D + E) operations, memory rows (D + E) and the largest N_s^2.
    Raises ValueError for starts that do not ascend from 0 to the number of rows.
    """
    check_attention(query, key, value)
    if query.dim() != 2:
        raise ValueError(
            f"query must have shape (rows of all sequences, width), got {tuple(query.shape)}"
        )
    if key.shape != query.shape:
        raise ValueError(
            f"key must have the shape of query {tuple(query.shape)}, got {tuple(key.shape)}"
        )
    check_scale(scale)
    check_starts(starts, query.shape[-2])
    if runs_kernel(backend, query.device, lambda: width_obstacle(query, value)):
        from attnlib.kernels import packed_attention as kernel

        whole = (x.contiguous() for x in (query, key, value))
        return kernel(*whole, query_starts=starts, is_causal=is_causal, scale=scale)
    sizes = starts.diff().tolist()
    sequences = zip(*(x.split(sizes) for x in (query, key, value)), strict=True)
    reads = [
        scaled_dot_product_attention(
            *(rows[None, None] for rows in one), is_causal=is_causal, scale=scale
        )[0, 0]
        for one in sequences
        if len(one[0])
    ]
    return torch.cat(reads) if reads else value[:0]


def check_starts(starts: Tensor, rows: int) -> None:
    """Check that starts are whole numbers that ascend from 0 to the number of rows."""
    if not isinstance(starts, Tensor) or starts.is_floating_point() or starts.dim() != 1:
        came = tuple(starts.shape) if isinstance(starts, Tensor) else type(starts).__name__
        raise TypeError(f"starts must be a tensor of ints (sequences + 1,), got {came}")
    edges = starts.tolist()
    if not edges or edges[0] != 0 or edges[-1] != rows or edges != sorted(edges):
        raise ValueError(f"starts must ascend from 0 to the number of rows {rows}, got {edges}")
