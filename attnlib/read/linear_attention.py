"""Linear attention: the sum over keys is taken before the query is known, so no N x M matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import runs_kernel
from attnlib.checks import check_attention, check_count, check_mask, check_tensor
from attnlib.read.heads import repeat_key_heads
from attnlib.score.features import FeatureMap, feature_product, features_of
from attnlib.weight.division import divided, divided_by_sum, not_divided
from attnlib.weight.feature_maps.elementwise import elu_plus_one


class LinearState(NamedTuple):
    """What linear attention keeps of all keys so far; its size does not grow."""

    matrix: Float[Tensor, "*heads R E"]
    """S = sum_j phi(k_j) v_j^T."""
    total: Float[Tensor, "*heads R"]
    """z = sum_j phi(k_j)."""


def feature_map_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    feature_map: FeatureMap = elu_plus_one,
    key_feature_map: FeatureMap | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    normalize: bool = True,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""The dense form, `attend` with two steps changed: the oracle of all linear attention.

    .. math:: w_{ij} = \phi(q_i) \cdot \phi'(k_j) \Big/ \sum_{l \in S_i} \phi(q_i) \cdot \phi'(k_l)

    Shapes, support and errors as in `attend`. Cost: time N M (R + E), memory N M for each head.
    Source: Katharopoulos et al. (2020), eq. 4. Derived in chapter 3.1.
    """
    return attend(
        query,
        key,
        value,
        score=feature_product(feature_map, key_feature_map),
        weight=divided_by_sum if normalize else not_divided,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
    )


def linear_attention_step(
    state: LinearState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*key_heads 1 D"],
    value: Float[Tensor, "*key_heads 1 E"],
    *,
    feature_map: FeatureMap = elu_plus_one,
    key_feature_map: FeatureMap | None = None,
    normalize: bool = True,
    enable_gqa: bool = False,
) -> tuple[Float[Tensor, "*heads 1 E"], LinearState]:
    r"""Causal linear attention for the next token: (read, new state). Pass None to begin.

    .. math:: S \leftarrow S + \phi(k) v^\top, \quad z \leftarrow z + \phi(k), \quad
              o = \phi(q)^\top S / \phi(q)^\top z

    Token by token it gives the rows of `linear_attention(..., is_causal=True)`.
    Cost: time and memory R E a token, however many came before. Half precision keeps its state in
    float32. Raises ValueError for more than one token and for a state of another shape.
    Source: Katharopoulos et al. (2020), eqs. 16 to 20.
    """
    check_attention(query, key, value, enable_gqa)
    check_one_token(query, key)
    dtype = summed_in(query)
    phi_q = features_of("feature_map", feature_map, query.to(dtype))
    phi_k = features_of("key_feature_map", key_feature_map or feature_map, key.to(dtype))
    written = phi_k.mT @ value.to(dtype)
    if state is None:
        state = LinearState(torch.zeros_like(written), torch.zeros_like(phi_k[..., 0, :]))
    check_state(state, written)
    state = LinearState(state.matrix + written, state.total + phi_k[..., 0, :])
    matrix, total = state.matrix, state.total.unsqueeze(-1)
    if enable_gqa:
        matrix, total = repeat_key_heads(query, matrix, total)
    read = phi_q @ matrix
    if normalize:
        read = divided(read, phi_q @ total)
    return read.to(query.dtype), state


def check_one_token(query: Tensor, key: Tensor) -> None:
    """Raise unless there is one query and one key."""
    for name, tensor in (("query", query), ("key", key)):
        if tensor.shape[-2] != 1:
            raise ValueError(f"{name} must have one token, got {tensor.shape[-2]}")


def check_widths(query: Tensor, key: Tensor) -> None:
    """Raise unless query and key have the same width."""
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"key must have the width of query, {query.shape[-1]}, got {key.shape[-1]}"
        )


def check_state(state: LinearState, written: Tensor) -> None:
    """Raise unless `state` can take what is written into it."""
    if not isinstance(state, LinearState):
        raise TypeError(f"state must be a LinearState or None, got {type(state).__name__}")
    for name, tensor in (("state.matrix", state.matrix), ("state.total", state.total)):
        check_tensor(name, tensor)
    wanted = (written.shape, written.shape[:-1])
    dtypes = {state.matrix.dtype, state.total.dtype}
    if (state.matrix.shape, state.total.shape) != wanted or dtypes != {written.dtype}:
        raise ValueError(
            f"state must have a matrix {tuple(wanted[0])} and a total {tuple(wanted[1])} in "
            f"{written.dtype}, got {tuple(state.matrix.shape)} in {state.matrix.dtype} and "
            f"{tuple(state.total.shape)} in {state.total.dtype}"
        )


@mechanism(
    key="linear-attention",
    paper="katharopoulos-2020",
    chapter="3-linear/feature-maps",
    section="the-associativity-trick",
    step="weight",
    idea="a product of features replaces the exponential, and the sum over keys is taken first",
    equation=r"\phi(Q)\,\bigl(\phi(K)^\top V\bigr) \big/ \phi(Q) \textstyle\sum_j \phi(k_j)",
    cost="time (N + M) R E, memory (N + M)(R + E) + R E",
    oracle=feature_map_attention,
    recurrent=linear_attention_step,
    promises=Promises(constant_state=True),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def linear_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    feature_map: FeatureMap = elu_plus_one,
    key_feature_map: FeatureMap | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    normalize: bool = True,
    enable_gqa: bool = False,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""The read of `feature_map_attention` without its N x M matrix.

    .. math:: o_i = \frac{\phi(q_i)^\top \sum_{j \in S_i} \phi'(k_j) v_j^\top}
                         {\phi(q_i)^\top \sum_{j \in S_i} \phi'(k_j)}

    With `is_causal` the sums grow from row to row. They are kept between chunks of `chunk` tokens
    only; inside a chunk the weights are computed as a small dense table.

    Shapes, support and errors as in `attend`; `feature_map` takes (..., length, D) to features
    (..., length, R), row by row. `key_feature_map` is the same unless given. With
    `normalize=False` the read is the numerator alone. A row whose sum is zero reads zero; on a CPU
    a negative sum raises ValueError.
    An `attn_mask` that is the same for all queries, such as (batch, 1, 1, M), is a padding of the
    keys. With any other mask the rows share no sum, and the dense form runs.
    Cost: time (N + M) R E, and N chunk (R + E) more with `is_causal`; memory (N + M)(R + E).
    Half precision is computed in float32. Finite as long as the features and their sums are.

    `backend` as in `attnlib.backend`; the kernel runs the causal form.
    Source: Katharopoulos et al. (2020), eqs. 4 to 6, 9 to 12. Derived in chapter 3.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    dtype = summed_in(query)
    if attn_mask is not None:
        check_mask(attn_mask, torch.Size((*query.shape[:-1], key.shape[-2])))
        if not same_for_all_queries(attn_mask):
            runs_kernel(backend, query.device, mask_by_query)
            return feature_map_attention(
                *(tensor.to(dtype) for tensor in (query, key, value)),
                feature_map=feature_map,
                key_feature_map=key_feature_map,
                attn_mask=attn_mask,
                is_causal=is_causal,
                query_offset=query_offset,
                normalize=normalize,
                enable_gqa=enable_gqa,
            ).to(query.dtype)

    result, (query, key, value) = query.dtype, (x.to(dtype) for x in (query, key, value))
    # The sum to divide by is one more channel of the read: that of a value of ones.
    counted = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1) if normalize else value
    if enable_gqa:
        key, counted = repeat_key_heads(query, key, counted)
    if attn_mask is not None:
        padding = ~keys_allowed(attn_mask)[..., None]
        key, counted = key.masked_fill(padding, 0.0), counted.masked_fill(padding, 0.0)

    def features(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        return paired_features(feature_map, key_feature_map, queries, keys)

    finish = divided_by_last if normalize else lambda sums: sums
    if runs_kernel(
        backend, query.device, lambda: why_not_kernel(is_causal, features, query, counted)
    ):
        read = finish(kernel_sums(*features(query, key), counted, query_offset))
    elif is_causal:
        read = causal_read(features, finish, query, key, counted, query_offset, chunk)
    else:
        phi_q, phi_k = features(query, key)
        read = finish(phi_q @ (phi_k.mT @ counted))
    return read.to(result)


def paired_features(
    feature_map: FeatureMap, key_feature_map: FeatureMap | None, query: Tensor, key: Tensor
) -> tuple[Float[Tensor, "*heads N R"], Float[Tensor, "*heads M R"]]:
    """phi(q) and phi'(k), once it is sure that they can be multiplied."""
    phi_q = features_of("feature_map", feature_map, query)
    phi_k = features_of("key_feature_map", key_feature_map or feature_map, key)
    if phi_q.shape[-1] != phi_k.shape[-1]:
        raise ValueError(
            "key_feature_map must give as many features as feature_map, "
            f"got {phi_k.shape[-1]} for {phi_q.shape[-1]}: is the width of key that of query?"
        )
    return phi_q, phi_k


def divided_by_last(sums: Float[Tensor, "*heads N E_and_one"]) -> Float[Tensor, "*heads N E"]:
    """All channels but the last, divided by the last."""
    return divided(sums[..., :-1], sums[..., -1:])


def causal_read(
    features: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    finish: Callable[[Tensor], Tensor],
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    query_offset: int,
    chunk: int,
) -> Float[Tensor, "*heads N _"]:
    r"""finish of sum over j <= i + query_offset of (phi(q_i) . phi(k_j)) v_j, chunk by chunk.

    A query reads the keys of all chunks before its own through their sum, a state (R, E), and
    those of its own chunk one by one. Chunks are small, so what is made of one stays near the
    processor, and only one chunk's features exist at a time.
    """
    no_query, first = features(query[..., :0, :], key[..., :query_offset, :])
    state = first.mT @ value[..., :query_offset, :]
    reads = [finish(no_query @ state)]
    for start in range(0, query.shape[-2], chunk):
        own = slice(start + query_offset, start + query_offset + chunk)
        v = value[..., own, :]
        phi_q, phi_k = features(query[..., start : start + chunk, :], key[..., own, :])
        read = (phi_q @ phi_k.mT).tril_() @ v
        read += phi_q @ state  # in place: no gradient needs what was there
        reads.append(finish(read))
        state = state + phi_k.mT @ v
    return torch.cat(reads, dim=-2)


def kernel_sums(phi_q: Tensor, phi_k: Tensor, value: Tensor, query_offset: int) -> Tensor:
    """The sums of `causal_read` by the Triton kernel.

    It takes one key a query, so keys before `query_offset` go into its first state, and zeros stand
    for keys that do not exist.
    """
    from attnlib.kernels import linear_attention as kernel

    queries = phi_q.shape[-2]
    before, own = slice(query_offset), slice(query_offset, query_offset + queries)
    state = phi_k[..., before, :].mT @ value[..., before, :]
    missing = (0, 0, 0, queries - phi_k[..., own, :].shape[-2])
    phi_k, value = (F.pad(x[..., own, :], missing) for x in (phi_k, value))
    return kernel(*(x.contiguous() for x in (phi_q, phi_k, value)), initial_state=state, scale=1.0)[
        0
    ]


def why_not_kernel(is_causal: bool, features: Callable, query: Tensor, value: Tensor) -> str | None:
    """What of this call the kernel cannot do, or None."""
    if not is_causal:
        return "without is_causal linear attention is two products of matrices, and needs no kernel"
    from attnlib.kernels.launch import LARGEST_WIDTH

    width = features(query[..., :0, :], query[..., :0, :])[0].shape[-1]
    if max(width, value.shape[-1]) > LARGEST_WIDTH:
        return (
            f"the kernel takes up to {LARGEST_WIDTH} features and channels of the value (one more "
            f"than E where it divides), got {width} and {value.shape[-1]}"
        )
    return None


def same_for_all_queries(attn_mask: Bool[Tensor, ...]) -> bool:
    """Whether a mask says the same in every row, so that it is a padding of the keys."""
    if attn_mask.dim() < 2 or attn_mask.shape[-2] == 1:
        return True
    return attn_mask.shape[-2] > 0 and attn_mask.stride(-2) == 0


def keys_allowed(attn_mask: Bool[Tensor, ...]) -> Bool[Tensor, "*#heads #M"]:
    """The row that a mask has for every query, where it is the same for all of them."""
    return attn_mask.reshape(-1) if attn_mask.dim() < 2 else attn_mask[..., 0, :]


def mask_by_query() -> str:
    """Why the kernel cannot take a mask whose rows differ."""
    return "with an attn_mask that differs from query to query the rows share no sum"


def summed_in(query: Tensor) -> torch.dtype:
    """The dtype in which sums over keys are kept: float32 for half precision."""
    return torch.float32 if query.element_size() < 4 else query.dtype
