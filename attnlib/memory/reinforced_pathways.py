"""Pathways that grow with use: pairs that were asked for are written once more.

A reconstruction: the abstract of the source gives no equation. What is here is ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, pad

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_count, check_scale
from attnlib.memory.matrix_state import check_recurrent
from attnlib.support import window as last_keys
from attnlib.weight.softmax_attention import softmax_attention


def use_of_pairs(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*heads N N"]:
    """How much query t uses pair s: its attention weight times max(0, cosine of query and key)."""
    length = key.shape[-2]
    unit = torch.eye(length, dtype=key.dtype, device=key.device)
    support = None if window is None else last_keys(window)
    weights = softmax_attention(
        query,
        key,
        unit.expand(*key.shape[:-2], length, length),
        support=support,
        is_causal=True,
        scale=scale,
    )
    return weights * cosine(query, key).relu()


def cosine(
    query: Float[Tensor, "*heads N D"], key: Float[Tensor, "*heads M D"]
) -> Float[Tensor, "*heads N M"]:
    """The cosine of each query with each key; zero for a vector of zeros."""
    return normalize(query, dim=-1) @ normalize(key, dim=-1).mT


@mechanism(
    key="synaptic-resonance",
    paper="synaptic-resonance",
    chapter="7-memory/test-time-memory-in-practice",
    section="pathways-in-use",
    step="memory",
    idea="beside attention a fast weight that writes every pair again when it is asked for",
    equation=(
        r"R_t = \gamma R_{t-1} + \eta \sum_s w_{ts} \cos(q_t, k_s)_+ \hat k_s v_s^\top,"
        r" \; o_t = \sum_s w_{ts} v_s + R_{t-1}^\top \hat q_t"
    ),
    cost="time N^2 (D + E + N) in this dense form; as a state D E numbers beside the cache",
    promises=Promises(
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        normalized=False,
        positive=False,
        grouped_query=False,
        padding=False,
    ),
    taxonomy=Taxonomy("self", "single", "soft", "multi-head"),
)
def reinforced_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    strength: float = 0.5,
    decay: float = 1.0,
    window: int | None = None,
    is_causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention plus a fast weight R that grows along the pairs that are in use.

    .. math:: R_t = \gamma R_{t-1} + \eta \sum_{s \le t} w_{ts} \cos(q_t, k_s)_+ \hat k_s v_s^\top,
              \qquad o_t = \sum_{s \le t} w_{ts} v_s + R_{t-1}^\top \hat q_t

    with eta = `strength`, gamma = `decay`, w the attention weights and hats for unit vectors. The
    attention may see the last `window` keys only; R keeps what was used there. With strength 0 it
    is softmax attention exactly. Summed up, key s adds sum_{r<t} gamma^{t-1-r} use_rs cos(q_t, k_s)
    to its weight: that is what this dense form computes.
    Shapes: query, key (..., heads, N, D), value (..., heads, N, E). Cost: N^2 (D + E + N).
    Raises ValueError for a negative strength, a decay outside 0 ... 1 and a window below 1.
    Source: a reconstruction after the abstract of Applegarth et al. (2025). Companion of 7.2.
    """
    check_recurrent(query, key, value, is_causal)
    check_scale(scale)
    if window is not None:
        check_count("window", window, least=1)
    if not strength >= 0:
        raise ValueError(f"strength must not be negative, got {strength}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in 0 ... 1, got {decay}")
    support = None if window is None else last_keys(window)
    read = softmax_attention(query, key, value, support=support, is_causal=True, scale=scale)
    if strength == 0 or key.shape[-2] == 0:
        return read
    sums = torch.float32 if query.element_size() < 4 else query.dtype
    wide_query, wide_key = query.to(sums), key.to(sums)
    use = use_of_pairs(wide_query, wide_key, window=window, scale=scale)
    age = torch.arange(key.shape[-2], dtype=sums, device=key.device)
    fading = (decay ** (age[:, None] - age[None, :]).clamp(min=0)).tril()
    before = pad((fading @ use)[..., :-1, :], (0, 0, 1, 0))  # used by the queries before t
    added = strength * (before * cosine(wide_query, wide_key)) @ value.to(sums)
    return (read.to(sums) + added).to(query.dtype)
