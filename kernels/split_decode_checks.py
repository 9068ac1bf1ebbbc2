"""What the decoding kernel asks of its arguments before it starts: whole numbers, tensors, pages.

Lengths and page numbers lie on the GPU. To look at them the host waits until they are there.
"""

import math

import torch
from attnlib.kernels.launch import check_attention, check_dtype, check_scale, check_whole
from torch import Tensor

PAGE_SIZES = (16, 32, 64, 128, 256)
LARGEST_POSITION = 2**29  # the kernel adds up to three of them in 32 bits


def check_numbers(
    query_offset: int | None,
    sinks: int,
    window: int | None,
    scale: float | None,
    splits: int | None,
    largest_splits: int,
) -> None:
    """Raise unless the numbers are whole where they must be, and within their bounds."""
    check_scale(scale)
    check_whole("sinks", sinks, least=0, most=LARGEST_POSITION)
    for name, number, least in (
        ("query_offset", query_offset, 0),
        ("window", window, 1),
        ("splits", splits, 1),
    ):
        if number is not None:
            check_whole(name, number, least, most=LARGEST_POSITION)
    if splits is not None and splits > largest_splits:
        raise ValueError(f"splits must be at most {largest_splits} for the kernel, got {splits}")


def check_tensors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    pages: Tensor | None,
    sink_logit: Tensor | None,
) -> None:
    """Raise unless dtypes and shapes fit."""
    if pages is None:
        check_attention(query, key, value)
    else:
        check_paged_attention(query, key, value, pages)
    if lengths is not None:
        check_lengths(lengths, room_of(query, key, pages)[0])
    if sink_logit is not None:
        check_dtype("sink_logit", sink_logit)
        heads = query.shape[-3] if query.dim() > 2 else 1
        if sink_logit.shape != (heads,):
            raise ValueError(
                f"sink_logit must have shape ({heads},), one number for each head of query, "
                f"got {tuple(sink_logit.shape)}"
            )


def room_of(query: Tensor, key: Tensor, pages: Tensor | None) -> tuple[int, int]:
    """How many caches there are, and how many keys one has room for."""
    if pages is None:
        return math.prod(query.shape[:-3]), key.shape[-2]
    return pages.shape[0], pages.shape[1] * key.shape[-2]


def check_paged_attention(query: Tensor, key: Tensor, value: Tensor, pages: Tensor) -> None:
    """Raise unless query (B, H, N, D), pools (P, Hkv, page_size, width) and the page table fit."""
    if not isinstance(pages, Tensor) or pages.dtype != torch.int32:
        came = pages.dtype if isinstance(pages, Tensor) else type(pages).__name__
        raise TypeError(f"pages must be an int32 tensor, got {came}")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_dtype(name, tensor)
        if tensor.dim() != 4:
            wanted = "(B, H, N, D)" if name == "query" else "(P, Hkv, page_size, width)"
            raise ValueError(
                f"with pages {name} must have shape {wanted}, got {tuple(tensor.shape)}"
            )
    check_attention(query[:0], key[:0], value[:0])  # all but the first axis, which differs
    if len(value) != len(key):
        raise ValueError(
            f"value must have as many pages as key, {len(key)} expected, got {len(value)}"
        )
    if key.shape[-2] not in PAGE_SIZES:
        raise ValueError(
            f"a page of key must have 16, 32, 64, 128 or 256 rows, got {key.shape[-2]}"
        )
    if pages.dim() != 2 or len(pages) != len(query):
        raise ValueError(
            f"pages must have shape ({len(query)}, pages of a sequence), a row for each sequence, "
            f"got {tuple(pages.shape)}"
        )


def check_lengths(lengths: Tensor, batch: int) -> None:
    """Raise unless `lengths` has a whole number for each cache."""
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int32, torch.int64):
        came = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be an int32 or int64 tensor, got {came}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths must have shape ({batch},), one for each batch entry, "
            f"got {tuple(lengths.shape)}"
        )


def check_lengths_fit(lengths: Tensor, keys: int) -> None:
    """Raise unless every length lies within the rows of a cache. The host waits for the numbers."""
    if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= keys:
        raise ValueError(
            f"lengths must lie between 0 and the {keys} rows of a cache, got {lengths.tolist()}"
        )


def check_page_numbers(
    query: Tensor,
    key: Tensor,
    pages: Tensor,
    query_offset: int | None,
    lengths: Tensor | None,
    sinks: int,
    window: int | None,
) -> None:
    """Raise where a page from which a query sees a key is not in the pool."""
    used = pages_in_use(query, key, pages, query_offset, lengths, sinks, window)
    outside = used & ((pages < 0) | (pages >= len(key)))
    if outside.any():
        sequence, page = outside.nonzero()[0].tolist()
        raise ValueError(
            f"pages must lie between 0 and {len(key) - 1} where keys are read (the pool of key has "
            f"{len(key)} pages), got {pages[sequence, page].item()} for page {page} of "
            f"sequence {sequence}"
        )


def pages_in_use(
    query: Tensor,
    key: Tensor,
    pages: Tensor,
    query_offset: int | None,
    lengths: Tensor | None,
    sinks: int,
    window: int | None,
) -> Tensor:
    """Which pages of each sequence hold a key that some query sees: bool, like `pages`."""
    queries, page_size = query.shape[-2], key.shape[-2]
    first_key = torch.arange(pages.shape[1], device=pages.device) * page_size
    length = pages.shape[1] * page_size if lengths is None else lengths[:, None].long()
    position = length - queries if query_offset is None else query_offset  # of the first query
    used = (first_key < length) & (first_key < position + queries)
    if window is not None:
        used = used & ((first_key < sinks) | (first_key + page_size > position - window + 1))
    return used.expand(pages.shape)


def check_no_gradient(**tensors: Tensor) -> None:
    """Raise a ValueError where autograd would expect a backward pass."""
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and the decoding kernel has no backward pass: "
                "call it under torch.no_grad(), or use the PyTorch form"
            )
