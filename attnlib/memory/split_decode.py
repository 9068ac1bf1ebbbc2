"""Decoding against a long cache: the keys in parts, each part read alone, the parts merged."""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import gradient_wanted, runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_count, check_scale
from attnlib.memory.partial_read import PartialRead, empty_read, finish, merge, partial_read
from attnlib.read.chunked_softmax import chunks
from attnlib.score.compare import dot_product

KEYS_IN_A_PART = 8192
"""How many keys the PyTorch form reads at once unless told: its scores stay in fast memory."""


@mechanism(
    key="split-decode",
    paper="dao-2023",
    chapter="1-foundations/exact-and-cached",
    section="decoding-reads-bytes",
    step="memory",
    idea="a few new queries read a long cache in parts, and the parts are merged",
    equation=r"\textstyle\bigoplus_{p}\,(m_p, \ell_p, o_p)",
    cost="time N M (D + E), keys and values read once for all queries that share them",
    oracle=attend,
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def split_decode(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    query_offset: int | None = None,
    lengths: Int[Tensor, " B"] | None = None,
    splits: int | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Causal softmax attention of the newest queries against a cache, cut into `splits` parts.

    .. math:: o = \frac{\sum_p e^{m_p - m}\, o_p}{\sum_p e^{m_p - m}\, \ell_p},
              \qquad m = \max_p m_p

    where part p of the keys gives (m_p, \ell_p, o_p), see `partial_read`. The parts do not wait for
    each other, so one query keeps a whole processor busy.

    Shapes as in `attend`; N is small, M long. The queries are the last N tokens of the cache: query
    i sees keys j <= i + M - N, unless `query_offset` says j <= i + `query_offset`. `lengths`, one
    for each batch entry (batch dimensions are numbered through), says how many rows of a cache are
    filled: M is lengths[b] then, and rows beyond it are never read. A query before the first key
    reads zero. With `enable_gqa` the queries of a group read their key head together, once.
    Cost: time N M (D + E); M (D + E) numbers are read for each key head.
    Raises ValueError or TypeError naming the argument that does not fit.
    `backend` as in `attnlib.backend`; the kernel has no backward pass, and "auto" uses PyTorch
    where a gradient is wanted. Source: Dao et al. (2023), Flash-Decoding. Derived in chapter 1.4.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    if query_offset is not None:
        check_count("query_offset", query_offset)
    if splits is not None:
        check_count("splits", splits, least=1)
    if lengths is not None:
        check_lengths(lengths, query)

    if runs_kernel(backend, query.device, lambda: why_not_kernel(query, key, value, splits)):
        from attnlib.kernels import split_decode as kernel

        options = {"query_offset": query_offset, "lengths": lengths, "scale": scale}
        return kernel(query, key, value, **options, splits=splits)
    if lengths is None:
        return decode(query, key, value, query_offset, splits, scale)
    return decode_each(query, key, value, lengths, query_offset, splits, scale)


def decode(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    query_offset: int | None,
    splits: int | None,
    scale: float | None,
) -> Float[Tensor, "*heads N E"]:
    """The PyTorch form where all keys exist: read each part, merge them, finish."""
    queries, keys = query.shape[-2], key.shape[-2]
    offset = keys - queries if query_offset is None else query_offset
    keys = max(0, min(keys, offset + queries))  # no query sees the ones after these
    rows = query_rows(query, key).to(torch.promote_types(query.dtype, torch.float32))
    last_seen = last_keys(offset, queries, rows)
    size = KEYS_IN_A_PART if splits is None else max(1, -(-keys // splits))

    def read(part: slice) -> PartialRead:
        scores = dot_product(rows, key[..., part, :].to(rows.dtype), scale)
        seen = torch.arange(part.start, part.stop, device=rows.device) <= last_seen
        return partial_read(scores, value[..., part, :].to(rows.dtype), seen)

    nothing = empty_read(rows, value.shape[-1])
    parts = [read(part) for part in chunks(keys, size)]
    read_rows = finish(functools.reduce(merge, parts, nothing))
    return read_rows.to(query.dtype).reshape(*query.shape[:-1], value.shape[-1])


def query_rows(
    query: Float[Tensor, "*heads N D"], key: Float[Tensor, "*key_heads M D"]
) -> Float[Tensor, "*key_heads rows D"]:
    """All queries that read one key head, below each other: group * N rows, head by head."""
    group = query.shape[-3] // max(key.shape[-3], 1) if query.dim() > 2 else 1
    return query.reshape(*key.shape[:-2], group * query.shape[-2], query.shape[-1])


def last_keys(offset: int, queries: int, rows: Float[Tensor, "*b R D"]) -> Int[Tensor, "R 1"]:
    """The last key that each row sees: i + offset for query i, once for each head of the group."""
    last = torch.arange(offset, offset + queries, device=rows.device)
    return last.repeat(rows.shape[-2] // max(queries, 1))[:, None]


def decode_each(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    lengths: Int[Tensor, " B"],
    query_offset: int | None,
    splits: int | None,
    scale: float | None,
) -> Float[Tensor, "*heads N E"]:
    """The PyTorch form for caches of several lengths: one batch entry after the other."""
    filled = lengths.tolist()
    if filled and not 0 <= min(filled) <= max(filled) <= key.shape[-2]:
        raise ValueError(
            f"lengths must lie between 0 and the {key.shape[-2]} rows of key, got {filled}"
        )
    entries = [
        x.reshape(-1, *x.shape[-3:]) if x.dim() > 3 else x[None] for x in (query, key, value)
    ]
    reads = [
        decode(q, k[..., :length, :], v[..., :length, :], query_offset, splits, scale)
        for q, k, v, length in zip(*entries, filled, strict=True)
    ]
    shape = (*query.shape[:-1], value.shape[-1])
    return torch.stack(reads).reshape(shape) if reads else query.new_zeros(shape)


def check_lengths(lengths: Tensor, query: Tensor) -> None:
    """Check that there is one whole number for each batch entry, on the device of the query."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a torch.Tensor, got {type(lengths).__name__}")
    if lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths must be int32 or int64, got {lengths.dtype}")
    batch = query.shape[:-3].numel()
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths must have shape ({batch},), one for each batch entry, "
            f"got {tuple(lengths.shape)}"
        )
    if lengths.device != query.device:
        raise ValueError(
            f"lengths must be on the device of query ({query.device}), got {lengths.device}"
        )


def why_not_kernel(query: Tensor, key: Tensor, value: Tensor, splits: int | None) -> str | None:
    """What of this call the kernel cannot do, or None."""
    from attnlib.kernels.split_decode import LARGEST_SPLITS

    if gradient_wanted(query, key, value):
        return "the decoding kernel has no backward pass, and a gradient is wanted"
    if splits is not None and splits > LARGEST_SPLITS:
        return f"the decoding kernel merges at most {LARGEST_SPLITS} splits, got {splits}"
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"{name} must have a last stride of 1, got {tensor.stride(-1)}"
    return width_obstacle(query, value)
