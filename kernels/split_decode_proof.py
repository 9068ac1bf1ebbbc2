"""How split_decode is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Iterator

import torch
from attnlib.kernels.dense_forms import softmax_attention
from attnlib.kernels.peers import attention_peers
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.split_decode import merge_kernel, part_kernel, split_decode, tile
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor

LENGTHS = (1, 15, 63, 100, 257)


def kernel(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """split_decode with its options in a dictionary, as the cases hold them."""
    return split_decode(query, key, value, **options)


def reference(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The definition in plain torch."""
    support = support_of(query, key, options.get("query_offset"), options.get("lengths"))
    return softmax_attention(query, key, value, support, options.get("scale"))


def support_of(
    query: Tensor, key: Tensor, query_offset: int | None, lengths: Tensor | None
) -> Tensor:
    """Which query sees which key: j < length and j <= i + offset."""
    i = torch.arange(query.shape[-2], device=query.device)[:, None]
    j = torch.arange(key.shape[-2], device=query.device)
    length = torch.tensor(key.shape[-2], device=query.device)
    if lengths is not None:
        length = lengths.view(*query.shape[:-3], 1, 1, 1)
    offset = length - query.shape[-2] if query_offset is None else query_offset
    return (j < length) & (j <= i + offset)


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
    for dtype, width, value_width, rows, shares_length in [
        (torch.float16, 128, 128, 4, True),
        (torch.bfloat16, 64, 64, 4, True),
        (torch.bfloat16, 128, 128, 4, True),
        (torch.bfloat16, 128, 128, 4, False),
        (torch.bfloat16, 128, 128, 32, True),
        (torch.bfloat16, 256, 256, 32, True),
        (torch.bfloat16, 80, 40, 4, True),
        (torch.float32, 128, 128, 4, True),
        (torch.float32, 256, 256, 4, False),
        (torch.float64, 256, 256, 4, True),
    ]:
        choices = tile(rows, width, value_width, dtype)
        warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
        constants = choices | {
            "query_offset": None,
            "scale": width**-0.5,
            "width": width,
            "value_width": value_width,
        }
        if shares_length:
            constants["lengths_ptr"] = None
        types = types_of(part_kernel.arg_names, constants, dtype, special_types(dtype))
        name = "parts" if shares_length else "parts, lengths"
        label = f"{name}, {types['query_ptr'][1:5]}, D {width} E {value_width}, {rows} rows"
        yield Launch(label, part_kernel, types, constants, warps, stages)
    for splits, value_width, warps in [(2, 64, 1), (64, 128, 4), (128, 256, 8)]:
        constants = {"split_block_size": splits, "value_width": value_width}
        types = types_of(
            merge_kernel.arg_names, constants, torch.bfloat16, special_types(torch.bfloat16)
        )
        yield Launch(
            f"merge, {splits} parts, E {value_width}", merge_kernel, types, constants, warps
        )


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to numbers of this dtype; steps are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    steps = ("i32:16",) * 3
    return {
        "lengths_ptr": "*i64:16",
        "max_ptr": sums,
        "total_ptr": sums,
        "read_ptr": sums,
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "counts": ("i32",) * 4,
        "splits": "i32",
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A batch and one sequence, long caches; shared key heads, and each head its own."""
    for batch, heads, key_heads, queries, keys, width in [
        (32, 32, 8, 1, 32768, 128),
        (1, 32, 8, 1, 32768, 128),
        (1, 32, 8, 1, 131072, 128),
        (32, 32, 8, 4, 8192, 128),
        (8, 16, 16, 1, 16384, 64),
    ]:
        query = torch.randn(batch, heads, queries, width, device=device, dtype=dtype)
        key, value = (
            torch.randn(batch, key_heads, keys, width, device=device, dtype=dtype) for _ in range(2)
        )
        name = f"B{batch} H{heads}/{key_heads} N{queries} M{keys} D{width}"
        yield Case(name, (query, key, value, {}))


def bytes_moved(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Queries, keys and values in, reads out, each once."""
    reads = query.numel() // query.shape[-1] * value.shape[-1]
    numbers = query.numel() + key.numel() + value.numel() + reads
    return {"forward": numbers * query.element_size()}


def operations(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Two products over the pairs of a query and a key: query i of N sees M - N + i + 1 keys."""
    queries, keys = query.shape[-2], key.shape[-2]
    pairs = query.shape[:-2].numel() * sum(keys - queries + i + 1 for i in range(queries))
    return {"forward": 2 * pairs * (query.shape[-1] + value.shape[-1])}


def peers(case: Case) -> dict:
    """PyTorch's own forms of the same read: causal, with the queries at the end of the keys."""
    query, key, value, _ = case.arguments
    offset = key.shape[-2] - query.shape[-2]
    return attention_peers(query, key, value, is_causal=True, query_offset=offset)


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
