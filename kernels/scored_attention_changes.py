"""What scored attention does to a score between the product and the softmax, and its derivative.

    s_ij = scale q_i . k_j
    x_ij = c tanh(s_ij / c) - m_h |j - p_i| + t_h[clip(j - p_i, -K, K) + K]

h is the head, p_i = i + query_offset the position of query i. Each term is there only where its
option is given: the kernel is compiled for that choice, and what was not asked for leaves no
instruction behind. Only the cap bends a score, so ds stands for dx wherever it is missing.
"""

import math

import triton
import triton.language as tl
from attnlib.kernels.launch import check_dtype
from attnlib.kernels.tiles import LOG2_E
from torch import Tensor

SOFTCAPS = (1e-6, 1e6)  # float32 rounds a capped score by softcap 2^-24: more has no digits left


@triton.jit
def changed_scores(products, queries, keys, head, changes, scale: tl.constexpr):
    """x_ij in base 2 for a tile of products q_i . k_j, and dx_ij / ds_ij.

    queries and keys are the numbers i and j, shaped to broadcast to the tile. Slopes and biases
    are in base 2. What a kernel does not use of the two results, the compiler leaves out.
    """
    softcap, slope_ptr, bias_ptr, reach, query_offset = changes
    positions = queries + query_offset
    scores, derivative = products * (scale * LOG2_E), 1.0
    if softcap is not None:
        bent, derivative = tanh_and_derivative(products * (scale / softcap))
        scores = bent * (softcap * LOG2_E)
    if slope_ptr is not None:  # ALiBi; float32 holds positions up to 2^24 exactly
        distance = tl.abs(keys.to(products.dtype) - positions.to(products.dtype))
        scores -= tl.load(slope_ptr + head) * distance
    if bias_ptr is not None:
        clipped = tl.minimum(tl.maximum(keys - positions, -reach), reach)
        scores += tl.load(bias_ptr + head * (2 * reach + 1) + (clipped + reach))
    return scores, derivative


@triton.jit
def tanh_and_derivative(x):
    """tanh(x) and 1 - tanh(x)^2, for x of any size.

    With e = exp(-2 |x|), which is at most 1: |tanh(x)| = (1 - e) / (1 + e), and the derivative is
    4 e / (1 + e)^2. Nothing overflows, and no 1 - tanh^2 loses the digits of a small derivative.
    """
    small = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    share = 1.0 / (1.0 + small)
    magnitude = (1.0 - small) * share
    return tl.where(x >= 0.0, magnitude, -magnitude), 4.0 * small * share * share


def check_changes(
    query: Tensor,
    sink_logit: Tensor | None,
    softcap: float | None,
    alibi_slopes: Tensor | None,
    relative_bias: Tensor | None,
) -> None:
    """Raise unless each option is None or what scored_attention says of it."""
    heads = query.shape[-3] if query.dim() > 2 else 1
    for name, numbers in [("sink_logit", sink_logit), ("alibi_slopes", alibi_slopes)]:
        if numbers is not None:
            check_dtype(name, numbers)
            if numbers.shape != (heads,):
                raise ValueError(
                    f"{name} must have one number for each query head, shape ({heads},), "
                    f"got {tuple(numbers.shape)}"
                )
    if alibi_slopes is not None and alibi_slopes.requires_grad:
        raise ValueError(
            "alibi_slopes are fixed and get no gradient, got a tensor that requires one; "
            "call alibi_slopes.detach()"
        )
    if relative_bias is not None:
        check_dtype("relative_bias", relative_bias)
        shape = tuple(relative_bias.shape)
        if len(shape) != 2 or shape[0] != heads or shape[1] % 2 == 0:
            raise ValueError(
                f"relative_bias must have shape (heads, 2 reach + 1) with {heads} heads and an "
                f"odd second size, got {shape}"
            )
    check_softcap(softcap)


def check_softcap(softcap: float | None) -> None:
    """Raise unless the cap is None (no cap) or a number within SOFTCAPS."""
    if softcap is None:
        return
    if isinstance(softcap, bool) or not isinstance(softcap, int | float):
        raise TypeError(f"softcap must be a number, got {type(softcap).__name__}")
    if not SOFTCAPS[0] <= softcap <= SOFTCAPS[1]:
        raise ValueError(f"softcap must be a positive number from 1e-6 to 1e6, got {softcap}")


def in_base_2(numbers: Tensor | None, arithmetic) -> Tensor | None:
    """Logits, slopes or biases times log2(e), in the dtype of the sums, one after the other."""
    if numbers is None:
        return None
    return (numbers.detach().to(arithmetic) * math.log2(math.e)).contiguous()
