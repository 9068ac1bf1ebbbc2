"""Attention over the first keys and the last ones: dense, in blocks of rows, and from a cache."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import gradient_wanted
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.memory.streaming_cache import StreamingCache, check_cache_sizes
from attnlib.read.chunked_softmax import chunks
from attnlib.read.heads import repeat_key_heads
from attnlib.score.compare import dot_product
from attnlib.score.positions import rotate
from attnlib.support import sink_and_window


def trial_sizes(query: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    """Sizes to try the mechanism with: short sequences fit, of long ones keys are left out."""
    return {"sinks": 2, "window": 90}


def dense_streaming_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sinks: int = 4,
    window: int = 60,
    rotary: bool = False,
    attn_mask: Tensor | None = None,
    is_causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`attend` with the support `sink_and_window`, and positions counted in the cache."""
    queries, keys = query.shape[-2], key.shape[-2]
    at = torch.arange(query_offset, query_offset + queries, device=query.device)

    def score(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
        if not rotary:
            return dot_product(query, key, scale)
        where = torch.arange(keys, device=key.device)
        return rotary_scores(query, key, at, where, sinks, window, scale)

    return attend(
        query,
        key,
        value,
        score=score,
        support=sink_and_window(sinks, window),
        attn_mask=attn_mask,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def rotary_scores(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    query_at: Tensor,
    key_at: Tensor,
    sinks: int,
    window: int,
    scale: float | None = None,
) -> Float[Tensor, "*heads N M"]:
    """Rotary scores with positions in the cache, which is full after sinks + window tokens.

    Tokens that have left close the gap between sinks and window. So two tokens of the window keep
    their distance, and a sink is never farther than sinks + window - 1.
    """
    last = sinks + window - 1
    turned = rotate(key, key_at)
    near = dot_product(rotate(query, query_at), turned, scale)
    far = dot_product(rotate(query, query_at.clamp(max=last)), turned, scale)
    return torch.where(key_at < sinks, far, near)


def streaming_attention_step(
    cache: StreamingCache | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*key_heads 1 D"],
    value: Float[Tensor, "*key_heads 1 E"],
    *,
    sinks: int = 4,
    window: int = 60,
    rotary: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Float[Tensor, "*heads 1 E"], StreamingCache]:
    """`streaming_attention` for the next token: (read, new cache). Pass None to begin.

    Cost: time and memory (sinks + window)(D + E) a token, whatever came before.
    Raises ValueError for a cache of other sizes, and for more than one token.
    """
    if cache is None:
        cache = StreamingCache.empty(key, value, sinks=sinks, window=window)
    if not isinstance(cache, StreamingCache):
        raise TypeError(f"cache must be a StreamingCache or None, got {type(cache).__name__}")
    if (cache.sinks, cache.window) != (sinks, window):
        raise ValueError(
            f"cache must have {sinks} sinks and a window of {window}, "
            f"got {cache.sinks} and {cache.window}"
        )
    if key.shape[-2] != 1:
        raise ValueError(f"key must be that of one token, got {key.shape[-2]}")
    cache = cache.append(key, value)
    return cache.read(query, rotary=rotary, scale=scale, enable_gqa=enable_gqa), cache


@mechanism(
    key="streaming-attention",
    paper="xiao-2024",
    chapter="4-sinks/where-sinks-come-from",
    section="streaming-with-kept-sinks",
    step="memory",
    idea="keep the first keys and the last ones, and count positions in the cache",
    equation=r"S_i = \{j < s\} \cup \{i - w < j \le i\}",
    cost="time N (s + w)(D + E), memory (N + M)(D + E) + chunk (s + w + chunk)",
    oracle=dense_streaming_attention,
    recurrent=streaming_attention_step,
    promises=Promises(
        key_invariant=False, query_equivariant=False, constant_state=True, arguments=trial_sizes
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def streaming_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    sinks: int = 4,
    window: int = 60,
    rotary: bool = False,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 128,
) -> Float[Tensor, "*heads N E"]:
    r"""Causal softmax attention over the first `sinks` keys and the last `window` keys.

    .. math:: S_i = \{j : j \le i,\ j < s \text{ or } i - j < w\}

    Row i is what `StreamingCache` reads after token i. With `rotary`, queries and keys come before
    rotation and are turned by their positions in the cache: distances inside the window are those
    of the text, and a sink stands at most s + w - 1 before the query. Without it scores are plain
    dot products.

    Rows are taken `chunk` at a time; a block sees the sinks and w + chunk - 1 keys at most, so the
    time is linear in N. `streaming_attention_step` gives the same rows one after the other.
    Shapes and errors as in `attend`; ValueError for is_causal=False and for sizes of the cache that
    keep nothing. Cost: time N (s + w + chunk)(D + E).
    Source: Xiao et al. (2024), section 3.2. Derived in chapter 4.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_cache_sizes(sinks, window)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    if not is_causal:
        raise ValueError("is_causal must be True: a stream has no future to read")
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    keys = key.shape[-2]
    if attn_mask is not None:
        shape = torch.Size((*query.shape[:-1], keys))
        check_mask(attn_mask, shape)
        attn_mask = attn_mask.expand(shape)

    def read_block(query: Tensor, key: Tensor, value: Tensor, rows: slice) -> Tensor:
        at = torch.arange(rows.start, rows.stop, device=query.device) + query_offset
        oldest = max(sinks, query_offset + rows.start - window + 1)
        everything = torch.arange(keys, device=key.device)
        where = torch.cat((everything[:sinks], everything[oldest : query_offset + rows.stop]))
        seen = sink_and_window(sinks, window)(at, at, at[:, None], where)
        if attn_mask is not None:
            seen = seen & attn_mask[..., rows, :][..., where]

        def score(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
            if not rotary:
                return dot_product(query, key, scale)
            return rotary_scores(query, key, at, where, sinks, window, scale)

        key, value = key[..., where, :], value[..., where, :]
        return attend(query, key, value, score=score, attn_mask=seen, scale=scale)

    blocks = chunks(query.shape[-2], chunk) or [slice(0, 0)]
    # A single block has nothing to gain from being computed twice.
    recompute = len(blocks) > 1 and gradient_wanted(query, key, value)

    def block(rows: slice) -> Tensor:
        args = (query[..., rows, :], key, value, rows)
        return (
            checkpoint(read_block, *args, use_reentrant=False) if recompute else read_block(*args)
        )

    return torch.cat([block(rows) for rows in blocks], dim=-2)
