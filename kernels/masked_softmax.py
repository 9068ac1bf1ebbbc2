"""The weight step as a kernel: softmax over the keys in each row's support S.

The equation, forward and backward (dL/dw_j is what the loss sends back):

    w_j     = exp(s_j - m) / sum_{k in S} exp(s_k - m)  for j in S,   m = max_{k in S} s_k
    w_j     = 0                                         elsewhere, and in a row with empty S
    dL/ds_j = w_j (dL/dw_j - sum_k w_k dL/dw_k)

What one program does: one row. A row may be longer than any tile, so the program walks over its
keys in blocks, twice. The first walk keeps two numbers, running_max and running_sum, where
running_sum counts every exponential relative to running_max. When a block raises the maximum
from m to m', the old sum shrinks by exp(m - m') and so is counted relative to m'. The second
walk reads the scores again and writes the weights.

What it moves, for a score of b bytes and a support of the same shape: forward 2 b + 1 bytes
(score and support in, weight out), backward 3 b (weight and gradient in, gradient out). The
second walk is not counted: the row is still in the cache. In float32 that is 9 and 12 bytes.

What it computes: two exponentials and about ten other operations a score.

The bound: an H200 copies about 4.3e12 bytes and takes about 3.9e12 exponentials a second. For a
float32 score that is 2.1 ps of traffic against 0.5 ps of exponentials. The traffic decides, so
no softmax beats (bytes moved) / (copy bandwidth). `gpu.py` prints this bound beside each time.

The online maximum: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.launch import check_device, check_dtype, check_support, on_device_of, readable
from attnlib.kernels.tiles import finite
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGEST_KEY_BLOCK = 2048


def masked_softmax(scores: Tensor, support: Tensor) -> Tensor:
    """Weights of softmax over each row's support: w_j = e^{s_j} / sum_{k in S} e^{s_k}.

    Shapes: scores (*batch, N, M), any number of leading axes; support bool, True where the row
    sees the key, broadcastable to scores; the weights have the shape and dtype of scores.

    Outside the support, and in a row whose support is empty, weights and gradients are zero. A
    score of minus infinity counts as outside. Finite for scores up to 1e4 in every dtype.
    float16 and bfloat16 are computed in float32. Gradients flow to scores, once (no second
    derivative).

    Cost: time and memory N M, no copy of a broadcast support. Scores whose leading axes do not
    fold into rows, or whose keys are not adjacent, are copied.

    Raises TypeError for a wrong dtype, ValueError for a support that does not broadcast, for
    tensors on different devices and for a device on which Triton cannot run.
    """
    check_dtype("scores", scores)
    if scores.dim() == 0:
        raise ValueError("scores must have at least one axis, the keys, got a tensor of shape ()")
    check_support(support, scores)
    check_device(forward_kernel, scores=scores, support=support)
    if scores.numel() == 0:
        return scores.clone()
    return MaskedSoftmax.apply(scores, support)


@triton.jit
def scores_in_support(
    scores_ptr, support_ptr, key_block, key_count, support_key_step, arithmetic: tl.constexpr
):
    """The scores of one block of keys, minus infinity where the row does not see the key."""
    in_row = key_block < key_count
    scores = tl.load(scores_ptr + key_block, mask=in_row, other=0.0).to(arithmetic)
    in_support = tl.load(support_ptr + key_block * support_key_step, mask=in_row, other=False)
    return tl.where(in_support, scores, -float("inf"))


@triton.jit
def forward_kernel(
    scores_ptr,
    support_ptr,
    support_row_ptr,
    weights_ptr,
    key_count,
    scores_row_step,
    support_row_step,
    support_key_step,
    arithmetic: tl.constexpr,
    key_block_size: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * scores_row_step
    support_ptr += tl.load(support_row_ptr + row) * support_row_step
    weights_ptr += row * key_count

    running_max = tl.full((), -float("inf"), arithmetic)
    running_sum = tl.full((), 0.0, arithmetic)
    for start in range(0, key_count, key_block_size):
        key_block = start + tl.arange(0, key_block_size)
        scores = scores_in_support(
            scores_ptr, support_ptr, key_block, key_count, support_key_step, arithmetic
        )
        new_max = tl.maximum(running_max, tl.max(scores))
        running_sum = running_sum * tl.exp(running_max - finite(new_max))
        running_sum += tl.sum(tl.exp(scores - finite(new_max)))
        running_max = new_max

    normalizer = tl.where(running_sum == 0.0, 1.0, running_sum)  # empty support: 0 / 1
    for start in range(0, key_count, key_block_size):
        key_block = start + tl.arange(0, key_block_size)
        scores = scores_in_support(
            scores_ptr, support_ptr, key_block, key_count, support_key_step, arithmetic
        )
        weights = tl.exp(scores - finite(running_max)) / normalizer
        tl.store(weights_ptr + key_block, weights, mask=key_block < key_count)


@triton.jit
def weights_and_products(
    weights_ptr, grad_weights_ptr, key_block, key_count, arithmetic: tl.constexpr
):
    """One block of w_j and of w_j dL/dw_j.

    A key of weight zero has the product zero, whatever its gradient: a masked value that is NaN
    or infinite must not reach the scores as 0 * NaN.
    """
    in_row = key_block < key_count
    weights = tl.load(weights_ptr + key_block, mask=in_row, other=0.0).to(arithmetic)
    grad_weights = tl.load(grad_weights_ptr + key_block, mask=in_row, other=0.0).to(arithmetic)
    return weights, tl.where(weights == 0.0, 0.0, weights * grad_weights)


@triton.jit
def backward_kernel(
    weights_ptr,
    grad_weights_ptr,
    grad_scores_ptr,
    key_count,
    grad_weights_row_step,
    arithmetic: tl.constexpr,
    key_block_size: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    weights_ptr += row * key_count
    grad_weights_ptr += row * grad_weights_row_step
    grad_scores_ptr += row * key_count

    mean_gradient = tl.full((), 0.0, arithmetic)
    for start in range(0, key_count, key_block_size):
        key_block = start + tl.arange(0, key_block_size)
        _, products = weights_and_products(
            weights_ptr, grad_weights_ptr, key_block, key_count, arithmetic
        )
        mean_gradient += tl.sum(products)

    for start in range(0, key_count, key_block_size):
        key_block = start + tl.arange(0, key_block_size)
        weights, products = weights_and_products(
            weights_ptr, grad_weights_ptr, key_block, key_count, arithmetic
        )
        grad_scores = products - weights * mean_gradient
        tl.store(grad_scores_ptr + key_block, grad_scores, mask=key_block < key_count)


class MaskedSoftmax(torch.autograd.Function):
    """The two kernels as one differentiable operation."""

    @staticmethod
    def forward(ctx, scores: Tensor, support: Tensor) -> Tensor:
        score_rows = as_rows(readable(forward_kernel, scores))
        support_rows, support_row = rows_of_support(support, scores.shape)
        weights = torch.empty(scores.shape, dtype=score_rows.dtype, device=scores.device)
        with on_device_of(scores):
            forward_kernel[(len(score_rows),)](
                score_rows,
                support_rows,
                support_row,
                weights,
                scores.shape[-1],
                score_rows.stride(0),
                support_rows.stride(0),
                support_rows.stride(1) if support_rows.shape[1] > 1 else 0,
                **tile(scores.shape[-1], scores.dtype),
            )
        weights = weights.to(scores.dtype)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_weights: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        weight_rows = as_rows(readable(backward_kernel, weights))
        grad_rows = as_rows(readable(backward_kernel, grad_weights))
        grad_scores = torch.empty(weights.shape, dtype=weight_rows.dtype, device=weights.device)
        with on_device_of(weights):
            backward_kernel[(len(weight_rows),)](
                weight_rows,
                grad_rows,
                grad_scores,
                weights.shape[-1],
                grad_rows.stride(0),
                **tile(weights.shape[-1], weights.dtype),
            )
        return grad_scores.to(weights.dtype), None


def tile(key_count: int, dtype: torch.dtype) -> dict:
    """The compile-time choices for rows of this length: arithmetic, keys a block, warps."""
    key_block_size = min(triton.next_power_of_2(key_count), LARGEST_KEY_BLOCK)
    return {
        "arithmetic": tl.float64 if dtype == torch.float64 else tl.float32,
        "key_block_size": key_block_size,
        "num_warps": max(1, min(8, key_block_size // 256)),
    }


def as_rows(tensor: Tensor) -> Tensor:
    """(*batch, M) as (rows, M) with adjacent keys: a view where the layout allows it."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def rows_of_support(support: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The distinct rows of the support, and for each row of scores which of them it uses.

    So a support shared by heads or batch entries is stored and read once, never expanded.
    """
    for axis in range(support.dim()):
        if support.stride(axis) == 0:
            support = support.narrow(axis, 0, 1)
    support = support.reshape((1,) * (len(shape) - support.dim()) + support.shape)
    rows = as_rows(support)
    numbers = torch.arange(len(rows), device=support.device).view(support.shape[:-1])
    return rows, numbers.expand(shape[:-1]).reshape(-1).contiguous()
