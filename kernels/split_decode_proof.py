"""How split_decode is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from attnlib.kernels import peers as dense_peers
from attnlib.kernels.dense_forms import for_every_head, softmax_attention
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.split_decode import merge_kernel, part_kernel, split_decode, tile
from attnlib.kernels.split_decode_checks import room_of
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor

LENGTHS = (1, 15, 63, 100, 257)
ARGUMENTS_OF = {
    "lengths": ("lengths_ptr",),
    "window": ("window",),
    "pages": ("pages_ptr", "page_steps", "page_size"),
}


def kernel(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """split_decode with its options in a dictionary, as the cases hold them."""
    return split_decode(query, key, value, **options)


def reference(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The definition in plain torch."""
    support = support_of(query, key, options)
    if "pages" in options:
        key, value = (in_order(pool, options["pages"]) for pool in (key, value))
    if "sink_logit" in options:
        return attention_with_sink_logit(query, key, value, support, options["sink_logit"])
    return softmax_attention(query, key, value, support, options.get("scale"))


def support_of(query: Tensor, key: Tensor, options: dict) -> Tensor:
    """Which query sees which key: j < length, j <= p, and j < sinks or j > p - window.

    A table that broadcasts to the scores, on the device of the lengths, else of the query.
    """
    _, keys = room_of(query, key, options.get("pages"))
    lengths, offset, window = (options.get(x) for x in ("lengths", "query_offset", "window"))
    length = torch.tensor(keys, device=query.device)
    if lengths is not None:
        length = lengths.view(*query.shape[:-3], 1, 1, 1)
    if offset is None:
        offset = length - query.shape[-2]
    position = torch.arange(query.shape[-2], device=length.device)[:, None] + offset
    j = torch.arange(keys, device=length.device)
    support = (j < length) & (j <= position)
    if window is not None:
        support = support & ((j < options.get("sinks", 0)) | (j > position - window))
    return support


def in_order(pool: Tensor, pages: Tensor) -> Tensor:
    """The pages of each sequence one after the other, (B, Hkv, M, D). Numbers of no page become 0
    or the last: what they stand for is not seen.
    """
    listed = pool[pages.long().clamp(0, len(pool) - 1)]  # (B, pages, Hkv, page_size, D)
    return listed.transpose(1, 2).flatten(2, 3)


def attention_with_sink_logit(
    query: Tensor, key: Tensor, value: Tensor, support: Tensor, sink_logit: Tensor
) -> Tensor:
    """Softmax over the scores and one more, whose value is zero."""
    key, value = (for_every_head(tensor, query) for tensor in (key, value))
    scores = torch.where(support, query.shape[-1] ** -0.5 * (query @ key.mT), -torch.inf)
    sink = sink_logit.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1] @ value


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths, and each layout, group and filling that has its own way to go wrong."""
    draw = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype)

    def case(name: str, queries: int, keys: int, heads=(), width=16, value_width=16, **options):
        key_heads = options.pop("key_heads", heads)
        tensors = rows(*heads, queries, width), rows(*key_heads, keys, width)
        return Case(name, (*tensors, rows(*key_heads, keys, value_width), options))

    def lengths(*filled: int) -> Tensor:
        return torch.tensor(filled, device=device)

    def paged(name: str, pages: list[list[int]], page_size=16, heads=2, queries=1, **options):
        widths = options.pop("width", 16), options.pop("value_width", 16)
        key, value = (rows(9, 2, page_size, width) for width in widths)
        for pool in (key, value):
            pool[[p for p in range(9) if not any(p in row for row in pages)]] = 1e4
        options["pages"] = torch.tensor(pages, dtype=torch.int32, device=device)
        return Case(name, (rows(len(pages), heads, queries, widths[0]), key, value, options))

    for keys in LENGTHS:
        yield case(f"{keys} keys", 1, keys, splits=3)
        yield case(f"{keys} keys, 2 queries", 2, keys, width=32, splits=1)
    yield case("5 queries, chosen splits", 5, 257)
    yield case("5 queries, 3 keys", 5, 3, splits=2)
    yield case("more splits than blocks", 1, 100, splits=16)
    yield case("queries before the end", 2, 257, splits=3, query_offset=130)
    yield case("four heads share a key head", 1, 257, (2, 4), key_heads=(2, 1), splits=2)
    yield case("three heads share, 5 queries", 5, 100, (6,), key_heads=(2,), splits=2)
    yield case("more rows than a block", 5, 63, (7,), key_heads=(1,))
    several = lengths(257, 1, 0, 140)
    yield case("lengths", 1, 257, (4, 2), key_heads=(4, 1), lengths=several)
    yield case("lengths, 2 queries", 2, 257, (4, 1), splits=2, lengths=several.int())
    yield case("lengths and an offset", 2, 63, (2, 1), lengths=lengths(63, 20), query_offset=40)
    yield case("two axes of batch", 2, 63, (2, 1, 2), lengths=lengths(50, 3))
    yield case("widths 40 and 80", 1, 100, (2,), width=40, value_width=80, splits=2)
    yield case("widths 80 and 3", 2, 63, (2,), width=80, value_width=3)
    yield case("width 256", 1, 63, width=256, value_width=256, splits=2)
    yield case("scale 0.3", 1, 63, scale=0.3)
    yield case("window and 4 sinks", 1, 700, (2,), splits=3, sinks=4, window=100)
    yield case("window, 5 queries", 5, 700, (4,), key_heads=(2,), splits=2, window=100)
    yield case("sinks reach the window", 2, 257, splits=2, sinks=200, window=100)
    yield case("window of one key", 2, 100, window=1, sinks=1)
    yield case("window behind all keys", 1, 257, window=20, sinks=3, query_offset=900)
    filled = {"lengths": lengths(700, 0, 140), "key_heads": (3, 1)}
    yield case("window, lengths", 2, 700, (3, 2), sinks=4, window=100, **filled)
    yield paged("pages of 16", [[4, 2, 7], [0, 5, -1]], lengths=lengths(48, 20))
    yield paged("pages of 64, 5 queries", [[1, 8, 3]], 64, 4, 5, lengths=lengths(130), splits=2)
    yield paged("pages of 256", [[3, 6]], 256, width=40, value_width=80, splits=2)
    yield paged("shared page", [[6, 8], [6, 9**9]], 32, lengths=lengths(40, 32).int())
    ends = {"sinks": 4, "window": 100, "query_offset": 500}
    yield paged("pages, window", [[2, -7, -7, 0, 1, 4, -7, -7]], 128, 4, 3, splits=3, **ends)
    logits = rows(6)
    yield case("sink logit", 2, 100, (6,), key_heads=(3,), splits=2, sink_logit=logits)
    several = {"sink_logit": logits[:2], "lengths": lengths(0, 40)}
    yield case("sink logit, lengths", 1, 63, (2, 2), **several)
    every = {"sink_logit": logits[:4], "lengths": lengths(300, 77), "sinks": 1, "window": 30}
    yield paged("all options", [[1, 0, 7, 3, 5], [4, 8, 2, -1, -1]], 64, 4, 2, **every)
    cache = [rows(2, 300, 16)[:, :257], rows(2, 300, 20)[:, :257, :16]]
    yield Case("views of a longer cache", (rows(2, 2, 16), *cache, {"splits": 2}))
    tokens = rows(2, 63, 3, 2, 16)
    heads_last = [part.transpose(1, 2) for part in tokens.unbind(3)]
    yield Case("heads beside the width", (rows(2, 1, 3, 16).transpose(1, 2), *heads_last, {}))
    yield Case("scores up to 1e4", (*huge_scores(dtype, device), {"splits": 2}))
    if device.type == "cuda":
        for width in (64, 80, 128, 256):
            yield case(f"long, width {width}", 1, 5000, (2, 8), width, 64, key_heads=(2, 2))
        filled = {"lengths": lengths(5000, 2, 999), "key_heads": (3, 2)}
        yield case("long, lengths, 4 queries", 4, 5000, (3, 16), 128, 128, **filled)
        ends = {"sinks": 4, "window": 1024, "key_heads": (3, 2)}
        yield case("long, window", 1, 5000, (3, 16), 128, 128, **ends)
        several = torch.randperm(9, generator=draw).view(1, 9).tolist()
        options = {"width": 128, "value_width": 128, "lengths": lengths(2200)}
        yield paged("long, pages", several, 256, 8, 2, **options)


def huge_scores(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Rows of scores that are 0 but for one of 1e4 or -1e4: exact in every dtype.

    The last of 257 keys is the one, in another part than the rest. Values are small whole numbers.
    """
    units = 200 * torch.eye(16, dtype=torch.float64)
    key = units[torch.arange(257) % 7]
    key[-1] = units[15]
    query = units[[15, 15, 3]] * torch.tensor([[1.0], [-1.0], [1.0]])
    value = (torch.arange(257) % 2)[:, None].expand(257, 16).contiguous()
    return [tensor.to(device, dtype) for tensor in (query, key, value)]


def launches() -> Iterator[Launch]:
    """The dtypes and widths of a cache, for one token and for a group of many rows.

    Pointers and steps are multiples of 16, as torch allocates them.
    """
    for dtype, width, value_width, rows, *given in [
        (torch.float16, 128, 128, 4),
        (torch.bfloat16, 64, 64, 4),
        (torch.bfloat16, 128, 128, 4),
        (torch.bfloat16, 128, 128, 4, "lengths"),
        (torch.bfloat16, 128, 128, 32),
        (torch.bfloat16, 256, 256, 32),
        (torch.bfloat16, 80, 40, 4),
        (torch.float32, 128, 128, 4),
        (torch.float32, 256, 256, 4, "lengths"),
        (torch.float64, 256, 256, 4),
        (torch.bfloat16, 128, 128, 4, "window"),
        (torch.float32, 128, 128, 4, "window"),
        (torch.float16, 128, 128, 4, "lengths", "pages"),
        (torch.bfloat16, 64, 64, 4, "lengths", "pages"),
        (torch.bfloat16, 128, 128, 4, "lengths", "pages"),
        (torch.float32, 256, 256, 4, "lengths", "pages"),
        (torch.bfloat16, 128, 128, 32, "lengths", "window", "pages"),
        (torch.bfloat16, 256, 256, 32, "lengths", "window", "pages"),
        (torch.float64, 256, 256, 4, "lengths", "window", "pages"),
    ]:
        choices = tile(rows, width, value_width, dtype, paged="pages" in given)
        warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
        constants = choices | {
            "query_offset": None,
            "scale": width**-0.5,
            "width": width,
            "value_width": value_width,
            "page_size": 64,
        }
        for option in ARGUMENTS_OF.keys() - given:
            constants |= dict.fromkeys(ARGUMENTS_OF[option])
        types = types_of(part_kernel.arg_names, constants, dtype, special_types(dtype))
        name = ", ".join(["parts", *given, types["query_ptr"][1:5]])
        label = f"{name}, D {width} E {value_width}, {rows} rows"
        yield Launch(label, part_kernel, types, constants, warps, stages)
    for splits, value_width, warps, *given in [
        (2, 64, 1),
        (64, 128, 4),
        (128, 256, 8),
        (128, 256, 8, "sink logit"),
    ]:
        constants = {"split_block_size": splits, "value_width": value_width}
        if not given:
            constants |= {"sink_logit_ptr": None, "counts": None}
        types = types_of(
            merge_kernel.arg_names,
            constants,
            torch.bfloat16,
            special_types(torch.bfloat16) | {"counts": ("i32",) * 2},
        )
        label = ", ".join(["merge", *given, f"{splits} parts", f"E {value_width}"])
        yield Launch(label, merge_kernel, types, constants, warps)


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to numbers of this dtype; steps are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    steps = ("i32:16",) * 3
    return {
        "lengths_ptr": "*i64:16",
        "pages_ptr": "*i32:16",
        "max_ptr": sums,
        "total_ptr": sums,
        "read_ptr": sums,
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "page_steps": ("i32",) * 2,
        "counts": ("i32",) * 4,
        "splits": "i32",
        "sinks": "i32",
        "window": "i32",
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A batch and one sequence, long caches; shared key heads, and each head its own.

    Then a window of one of them, and the batch once more in pages that lie in any order.
    """
    for batch, heads, key_heads, queries, keys, width, options in [
        (32, 32, 8, 1, 32768, 128, {}),
        (1, 32, 8, 1, 32768, 128, {}),
        (1, 32, 8, 1, 131072, 128, {}),
        (1, 32, 8, 1, 131072, 128, {"sinks": 4, "window": 1024}),
        (32, 32, 8, 4, 8192, 128, {}),
        (8, 16, 16, 1, 16384, 64, {}),
    ]:
        query = torch.randn(batch, heads, queries, width, device=device, dtype=dtype)
        key, value = (
            torch.randn(batch, key_heads, keys, width, device=device, dtype=dtype) for _ in range(2)
        )
        name = f"B{batch} H{heads}/{key_heads} N{queries} M{keys} D{width}"
        name += "".join(f" {option} {number}" for option, number in options.items())
        yield Case(name, (query, key, value, options))
    yield paged_case(32, 32, 8, 32768, 128, 64, dtype, device)


def paged_case(
    batch: int,
    heads: int,
    key_heads: int,
    keys: int,
    width: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Case:
    """One query against full caches whose pages lie in the pool in any order."""
    count = batch * keys // page_size
    query = torch.randn(batch, heads, 1, width, device=device, dtype=dtype)
    key, value = (
        torch.randn(count, key_heads, page_size, width, device=device, dtype=dtype)
        for _ in range(2)
    )
    pages = torch.randperm(count, device=device).int().view(batch, -1)
    lengths = torch.full((batch,), keys, device=device)
    name = f"B{batch} H{heads}/{key_heads} N1 M{keys} D{width} pages of {page_size}"
    return Case(name, (query, key, value, {"pages": pages, "lengths": lengths}))


def bytes_moved(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Queries, the keys and values that some query sees, and reads, each once.

    The page table, 4 bytes a page, is left out.
    """
    reads = query.numel() // query.shape[-1] * value.shape[-1]
    keys, _ = keys_and_pairs(query, key, options)
    numbers = query.numel() + keys * key.shape[-3] * (key.shape[-1] + value.shape[-1]) + reads
    return {"forward": numbers * query.element_size()}


def operations(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Two products over the pairs of a query and a key that it sees."""
    _, pairs = keys_and_pairs(query, key, options)
    return {"forward": 2 * pairs * query.shape[-3] * (query.shape[-1] + value.shape[-1])}


def keys_and_pairs(query: Tensor, key: Tensor, options: dict) -> tuple[int, int]:
    """How many keys of one key head are seen by some query, and how many pairs of a query and a
    key that it sees one query head has; over all batch entries.
    """
    support = support_of(query.new_empty(query.shape, device="cpu"), key, options)
    support = support.expand(*query.shape[:-3], 1, *support.shape[-2:])
    return support.any(-2).sum().item(), support.sum().item()


def peers(case: Case) -> dict[str, Callable]:
    """PyTorch's own forms of the same read: causal, with the queries at the end of the keys."""
    query, key, value, options = case.arguments
    if "pages" in options:
        return paged_peers(query, key, value, options)
    offset = key.shape[-2] - query.shape[-2]
    if "window" not in options:
        causal = {"is_causal": True, "query_offset": offset}
        return dense_peers.attention_peers(query, key, value, **causal)
    sinks, window = options.get("sinks", 0), options["window"]
    support = dense_peers.Support(
        lambda b, h, i, j: (j <= i + offset) & ((j < sinks) | (j > i + offset - window)), batch=None
    )
    return dense_peers.sdpa_peers(query, key, support, None) | dense_peers.flex_peer(
        query, key, support, None
    )


def paged_peers(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, Callable]:
    """PyTorch's forms take no pages: they read a copy in order. FlashInfer reads them in place.

    All caches must be full.
    """

    def read_in_order(peer: Callable, query: Tensor, key: Tensor, value: Tensor, options: dict):
        return peer(query, *(in_order(pool, options["pages"]) for pool in (key, value)))

    key, value = (in_order(pool, options["pages"]) for pool in (key, value))
    offset = key.shape[-2] - query.shape[-2]
    known = dense_peers.attention_peers(query, key, value, is_causal=True, query_offset=offset)
    named = {f"{name}, after a copy": partial(read_in_order, peer) for name, peer in known.items()}
    return named | {"FlashInfer": flashinfer_peer()}


def flashinfer_peer() -> Callable:
    """FlashInfer on the same pages; what it plans is planned at the first call, once."""
    plans = []

    def read(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
        if not plans:
            plans.append(flashinfer_plan(query, key, options["pages"]))
        return plans[0].run(query[:, :, 0], (key, value))[:, :, None]

    return read


def flashinfer_plan(query: Tensor, key: Tensor, pages: Tensor) -> object:
    """FlashInfer's reader of these pages, all of them full."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    batch, pages_of_one = pages.shape
    heads, width = query.shape[1], query.shape[3]
    key_heads, page_size = key.shape[1], key.shape[2]
    workspace = torch.zeros(2**27, dtype=torch.uint8, device=query.device)
    reader = BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    first = torch.arange(batch + 1, dtype=torch.int32, device=query.device) * pages_of_one
    filled = torch.full((batch,), page_size, dtype=torch.int32, device=query.device)
    sizes = heads, key_heads, width, page_size
    reader.plan(first, pages.flatten(), filled, *sizes, q_data_type=query.dtype)
    return reader


PROOF = Proof(
    name="split_decode",
    kernel=kernel,
    reference=reference,
    cases=cases,
    launches=tuple(launches()),
    timed_cases=timed_cases,
    bytes_moved=bytes_moved,
    operations=operations,
    peers=peers,
)
