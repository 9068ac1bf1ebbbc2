"""How flash_attention is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Iterator

import torch
from attnlib.kernels.bands import band_of
from attnlib.kernels.dense_forms import band_support, softmax_attention
from attnlib.kernels.flash_attention import (
    TILES,
    flash_attention,
    forward_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.peers import attention_peers
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tile_choice import tile
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor

LENGTHS = (1, 15, 63, 100, 257)


def kernel(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """flash_attention with its options in a dictionary, as the cases hold them."""
    return flash_attention(query, key, value, **options)


def reference(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The definition in plain torch."""
    support = band_support(query, key, **{k: v for k, v in options.items() if k != "scale"})
    return softmax_attention(query, key, value, support, options.get("scale"))


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths, and each support, layout and width that has its own way to go wrong."""
    draw = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
        return numbers.to(device, dtype).requires_grad_()

    def case(name: str, queries: int, keys: int, heads=(), width=16, value_width=16, **options):
        key_heads = options.pop("key_heads", heads)
        tensors = rows(*heads, queries, width), rows(*key_heads, keys, width)
        return Case(name, (*tensors, rows(*key_heads, keys, value_width), options))

    def mask(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=draw) < 0.6).to(device)

    causal = {"is_causal": True}
    for length in LENGTHS:
        values = {"value_width": 16 if length > 1 else 1}  # one key: nothing may round
        yield case(f"{length} keys", length, length, **values)
        yield case(f"{length} keys, causal", length, length, **values, **causal)
    yield case("more queries than keys, causal", 150, 63, **causal)
    yield case("fewer queries than keys", 15, 100)
    yield case("fewer queries than keys, causal", 15, 100, **causal)
    yield case("queries continue the keys", 15, 100, **causal, query_offset=85)
    yield case("first rows see nothing", 100, 63, **causal, query_offset=-30)
    yield case("window of 1", 63, 63, value_width=1, window=1)
    yield case("window of 70", 257, 257, window=70, **causal)
    yield case("window of 70, queries continue", 140, 200, window=70, query_offset=75)
    yield case("window wider than the keys", 63, 63, window=1000)
    yield case("window past the last key", 63, 20, window=5)
    yield case("heads", 63, 63, heads=(2, 2), **causal)
    yield case("two axes of batch", 15, 15, heads=(2, 1, 2))
    yield case("two heads share a key head", 63, 70, heads=(4,), key_heads=(2,), **causal)
    yield case("all heads share a key head", 15, 63, heads=(2, 2), key_heads=(2, 1))
    padding = mask(2, 70)
    padding[1] = False
    yield case("padded keys, one sequence empty", 63, 70, heads=(2, 2), key_mask=padding)
    yield case("same padding for all", 63, 70, heads=(2, 1, 1), key_mask=mask(70), **causal)
    yield case("padded keys in full tiles", 15, 200, key_mask=mask(200))
    yield case("widths 40 and 80", 63, 63, width=40, value_width=80, **causal)
    yield case("widths 80 and 3", 63, 63, width=80, value_width=3)
    yield case("width 1", 15, 15, width=1, value_width=1)
    yield case("width 256", 15, 63, width=256, value_width=256)
    yield case("scale 0.3", 15, 15, scale=0.3)
    yield case("one key in the tensor", 63, 1, value_width=1)
    several = rows(2, 20, 2, 3, 16).detach()
    heads_last = [part.transpose(1, 2).requires_grad_() for part in several.unbind(3)]
    yield Case("heads beside the width", (*heads_last, causal))
    wider = [rows(40, 20).detach()[::2, 2:18].requires_grad_() for _ in range(3)]
    yield Case("every second row of a wider tensor", (*wider, {}))
    yield Case("scores up to 1e4", (*huge_scores(dtype, device), {}))
    if device.type == "cuda":
        for width in (64, 80, 128, 256):
            for name, options in [("", {}), (", causal", causal), (", window", {"window": 300})]:
                yield case(f"many tiles, width {width}{name}", 1025, 1025, (2, 4), width, **options)
        shared = {"heads": (2, 8), "key_heads": (2, 2), "width": 128, "value_width": 64}
        yield case("many tiles, shared heads", 500, 1500, **shared, **causal, query_offset=1000)
        yield case("many tiles, padded", 700, 900, (2, 4), 64, 64, key_mask=mask(2, 900), **causal)


def huge_scores(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Rows of scores that are 0 but for one of 1e4 or -1e4: exact in every dtype.

    Values are unit vectors, so that nothing but the softmax itself can round.
    """
    units = 200 * torch.eye(16, dtype=torch.float64)
    query = units[torch.arange(15) % 7] * torch.tensor([1.0, -1.0, -1.0]).repeat(5)[:, None]
    tensors = query, units, torch.eye(16, dtype=torch.float64)
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def launches() -> Iterator[Launch]:
    """Each kernel for each chip, with the tile that the chip gets. Causal, window, full: the same.

    Pointers and steps are multiples of 16, as torch allocates them.
    """
    for dtype, width, value_width in [
        (torch.float16, 64, 64),
        (torch.float16, 128, 128),
        (torch.bfloat16, 64, 64),
        (torch.bfloat16, 128, 128),
        (torch.bfloat16, 256, 256),
        (torch.float32, 64, 64),
        (torch.float64, 64, 64),
    ]:
        for chip, shared_memory in SHARED_MEMORY.items():
            if dtype == torch.float64 and chip == 86:
                continue  # it has no matrix units for float64: it runs there, and spills
            for name, compiled in [
                ("forward", forward_kernel),
                ("query gradient", query_gradient_kernel),
                ("key gradient", key_gradient_kernel),
            ]:
                choices = tile(TILES, name, width, value_width, dtype, shared_memory)
                warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
                constants = choices | {
                    "key_mask_ptr": None,
                    "scale": width**-0.5,
                    "width": width,
                    "value_width": value_width,
                }
                types = types_of(compiled.arg_names, constants, dtype, special_types(dtype))
                label = f"{name}, {types['query_ptr'][1:5]}, D {width} E {value_width}, sm_{chip}"
                yield Launch(label, compiled, types, constants, warps, stages, chips=(chip,))


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to numbers of this dtype; steps are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    steps = ("i32:16",) * 3
    return {
        "log_sum_ptr": sums,
        "delta_ptr": sums,
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "counts": ("i32",) * 4,
        "band": ("i32",) * 2,
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The shape of the published numbers, a narrow head, shared heads, and a window."""
    for name, batch, heads, key_heads, length, width, options in [
        ("full", 4, 16, 16, 8192, 128, {}),
        ("causal", 4, 16, 16, 8192, 128, {"is_causal": True}),
        ("full", 4, 32, 32, 4096, 64, {}),
        ("causal", 4, 32, 32, 4096, 64, {"is_causal": True}),
        ("causal", 4, 32, 8, 4096, 128, {"is_causal": True}),
        ("window of 1024", 4, 16, 16, 8192, 128, {"is_causal": True, "window": 1024}),
    ]:
        query, key, value = (
            torch.randn(batch, count, length, width, device=device, dtype=dtype).requires_grad_()
            for count in (heads, key_heads, key_heads)
        )
        shared = f"/{key_heads}" if key_heads != heads else ""
        shape = f"B{batch} H{heads}{shared} N{length} D{width}"
        yield Case(f"{shape}, {name}", (query, key, value, options))


def bytes_moved(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Forward reads q, k, v and writes o and l; backward reads those and g, writes three."""
    inputs = sum(t.numel() * t.element_size() for t in (query, key, value))
    rows = query.numel() // query.shape[-1]
    read = rows * value.shape[-1] * query.element_size()
    log_sum = rows * max(4, query.element_size())
    return {
        "forward": inputs + read + log_sum,
        "backward": 2 * inputs + 2 * read + log_sum,
    }


def operations(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Two products forward and five backward, over the pairs of a query and a key it sees."""
    queries, keys = query.shape[-2], key.shape[-2]
    pairs = pairs_seen(queries, keys, options) * (query.numel() // query.shape[-1] // queries)
    width, value_width = query.shape[-1], value.shape[-1]
    return {
        "forward": 2 * pairs * (width + value_width),
        "backward": 2 * pairs * (3 * width + 2 * value_width),
    }


def pairs_seen(queries: int, keys: int, options: dict) -> int:
    """How many pairs of a query and a key the band of one head holds; padding is not looked at."""
    lowest, highest = band_of(
        queries,
        keys,
        options.get("is_causal", False),
        options.get("query_offset", 0),
        options.get("window"),
    )
    rows = range(queries)
    return sum(max(0, min(i + highest + 1, keys) - max(i + lowest, 0)) for i in rows)


def peers(case: Case) -> dict:
    """PyTorch's own forms of the same attention."""
    *tensors, options = case.arguments
    return attention_peers(*tensors, **options)


PROOF = Proof(
    name="flash_attention",
    kernel=kernel,
    reference=reference,
    cases=cases,
    launches=tuple(launches()),
    timed_cases=timed_cases,
    bytes_moved=bytes_moved,
    timed_dtypes=(torch.bfloat16, torch.float16),
    operations=operations,
    peers=peers,
)
