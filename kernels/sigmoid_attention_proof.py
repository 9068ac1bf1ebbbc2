"""How sigmoid_attention is proved and timed: its reference, its inputs, its launches, its bytes."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from attnlib.kernels.bands import band_of
from attnlib.kernels.dense_forms import band_support, for_every_head
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.sigmoid_attention import (
    TILES,
    forward_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
    sigmoid_attention,
)
from attnlib.kernels.tile_choice import tile
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor

LENGTHS = (1, 15, 63, 100, 257)


def kernel(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """sigmoid_attention with its options in a dictionary, as the cases hold them."""
    return sigmoid_attention(query, key, value, **options)


def reference(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The definition in plain torch: all N x M scores, the sigmoid of each, zero where hidden."""
    others = {name: option for name, option in options.items() if name not in ("bias", "scale")}
    support = band_support(query, key, **others)
    return dense_form(query, key, value, support, options.get("bias"), options.get("scale"))


def dense_form(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    support: Tensor | None = None,
    bias: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """o_i = sum_{j in S_i} sigmoid(s_ij + b_i) v_j, b_i = -log n_i or the one number given.

    support broadcasts to (..., H, N, M); without one every query sees every key.
    """
    key, value = (for_every_head(tensor, query) for tensor in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    bias = minus_log_n(key, support) if bias is None else bias
    weights = torch.sigmoid(scale * (query @ key.mT) + bias).to(value.dtype)
    if support is not None:
        weights = torch.where(support, weights, 0.0)
    return weights @ value


def minus_log_n(key: Tensor, support: Tensor | None) -> Tensor:
    """-log n_i, n_i the keys that row i sees: all without a support; 0 for a row that sees none."""
    if support is None:
        support = torch.ones(1, key.shape[-2], dtype=torch.bool, device=key.device)
    dtype = arithmetic_of(key.dtype)
    return -support.sum(-1, keepdim=True).clamp(min=1).to(dtype).log()


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths, and each support, layout, width and bias that has its own way to go wrong."""
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
        values = {"value_width": 16 if length > 1 else 1}  # one key: g . v may not cancel
        yield case(f"{length} keys", length, length, **values)
        yield case(f"{length} keys, causal", length, length, **values, **causal)
    yield case("heads", 63, 63, heads=(2, 2), **causal)
    yield case("widths 40 and 80", 63, 63, width=40, value_width=80, **causal)
    yield case("widths 80 and 3", 63, 63, width=80, value_width=3)
    yield case("width 1", 15, 15, width=1, value_width=1)
    yield case("width 256", 15, 63, width=256, value_width=256)
    yield case("scale 0.3", 15, 15, scale=0.3)
    yield case("bias 0", 63, 63, bias=0, **causal)
    yield case("bias 2.5", 15, 100, bias=2.5, window=9)
    yield case("bias -12, all weights near 0", 15, 63, bias=-12.0)
    if dtype == torch.float32:  # torch's own p (1 - p) is off by 5e-12 there, in float64
        yield case("bias 12, all weights near 1", 15, 63, bias=12.0)
    several = rows(2, 20, 2, 3, 16).detach()
    heads_last = [part.transpose(1, 2).requires_grad_() for part in several.unbind(3)]
    yield Case("heads beside the width", (*heads_last, causal))
    wider = [rows(40, 20).detach()[::2, 2:18].requires_grad_() for _ in range(3)]
    yield Case("every second row of a wider tensor", (*wider, {}))
    yield Case("scores up to 1e4", (*huge_scores(dtype, device), {"bias": 0.0}))
    if device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        return  # which keys a row sees is decided in float64 and float32
    yield case("more queries than keys, causal", 150, 63, **causal)
    yield case("fewer queries than keys", 15, 100)
    yield case("queries continue the keys", 15, 100, **causal, query_offset=85)
    yield case("first rows see nothing", 100, 63, **causal, query_offset=-30)
    yield case("window of 1", 63, 63, window=1)
    yield case("window of 70", 257, 257, window=70, **causal)
    yield case("window of 70, queries continue", 140, 200, window=70, query_offset=75)
    yield case("window past the last key", 63, 20, window=5)
    yield case("two axes of batch", 15, 15, heads=(2, 1, 2))
    yield case("two heads share a key head", 63, 70, heads=(4,), key_heads=(2,), **causal)
    yield case("all heads share a key head", 15, 63, heads=(2, 2), key_heads=(2, 1))
    padding = mask(2, 70)
    padding[1] = False
    yield case("padded keys, one sequence empty", 63, 70, heads=(2, 2), key_mask=padding)
    yield case("same padding for all", 63, 70, heads=(2, 1, 1), key_mask=mask(70), **causal)
    yield case("padded keys in full tiles", 15, 200, key_mask=mask(200))
    if device.type == "cuda":
        for width in (64, 80, 128, 256):
            for name, options in [("", {}), (", causal", causal), (", window", {"window": 300})]:
                yield case(f"many tiles, width {width}{name}", 1025, 1025, (2, 4), width, **options)
        shared = {"heads": (2, 8), "key_heads": (2, 2), "width": 128, "value_width": 64}
        yield case("many tiles, shared heads", 500, 1500, **shared, **causal, query_offset=1000)
        yield case("many tiles, padded", 700, 900, (2, 4), 64, 64, key_mask=mask(2, 900), **causal)


def huge_scores(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Rows of scores that are 0 but for one of 1e4 or -1e4, so weights 1/2, 1 and 0: exact."""
    units = 200 * torch.eye(16, dtype=torch.float64)
    query = units[torch.arange(15) % 7] * torch.tensor([1.0, -1.0, -1.0]).repeat(5)[:, None]
    tensors = query, units, torch.eye(16, dtype=torch.float64)
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def launches() -> Iterator[Launch]:
    """Each kernel for each chip, with the tile that the chip gets. Causal, window, full: the same.

    Pointers and steps are multiples of 16, as torch allocates them.
    """
    every_chip = tuple(SHARED_MEMORY)
    for dtype, width, chips in [
        (torch.float16, 64, every_chip),
        (torch.float16, 128, every_chip),
        (torch.bfloat16, 64, every_chip),
        (torch.bfloat16, 128, every_chip),
        (torch.float32, 64, (90,)),
    ]:
        for chip in chips:
            for name, compiled in [
                ("forward", forward_kernel),
                ("query gradient", query_gradient_kernel),
                ("key gradient", key_gradient_kernel),
            ]:
                yield launch(name, compiled, dtype, width, chip)


def launch(name: str, compiled: object, dtype: torch.dtype, width: int, chip: int) -> Launch:
    """One kernel for values as wide as keys, with the tile of this chip."""
    choices = tile(TILES, name, width, width, dtype, SHARED_MEMORY[chip])
    warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
    constants = choices | {
        "key_mask_ptr": None,
        "scale": width**-0.5,
        "width": width,
        "value_width": width,
    }
    steps = ("i32:16",) * 3
    special = {
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "counts": ("i32",) * 4,
        "band": ("i32",) * 2,
        "shift_ptr": POINTERS[arithmetic_of(dtype)],
    }
    types = types_of(compiled.arg_names, constants, dtype, special)
    label = f"{name}, {types['query_ptr'][1:5]}, D {width}, sm_{chip}"
    return Launch(label, compiled, types, constants, warps, stages, chips=(chip,))


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The shapes at which flash_attention is timed, full and causal, wide and narrow heads."""
    for name, batch, heads, length, width, options in [
        ("full", 4, 16, 8192, 128, {}),
        ("causal", 4, 16, 8192, 128, {"is_causal": True}),
        ("full", 4, 32, 4096, 64, {}),
        ("causal", 4, 32, 4096, 64, {"is_causal": True}),
    ]:
        tensors = (
            torch.randn(batch, heads, length, width, device=device, dtype=dtype).requires_grad_()
            for _ in range(3)
        )
        # One bias for all rows, as the peers have it.
        options = options | {"bias": -math.log(length)}
        yield Case(f"B{batch} H{heads} N{length} D{width}, {name}", (*tensors, options))


def bytes_moved(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Forward reads q, k, v and writes o; backward reads q, k, v and g, writes three."""
    inputs = sum(t.numel() * t.element_size() for t in (query, key, value))
    read = query.numel() // query.shape[-1] * value.shape[-1] * query.element_size()
    return {"forward": inputs + read, "backward": 2 * inputs + read}


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
    is_causal, offset = options.get("is_causal", False), options.get("query_offset", 0)
    lowest, highest = band_of(queries, keys, is_causal, offset, options.get("window"))
    rows = range(queries)
    return sum(max(0, min(i + highest + 1, keys) - max(i + lowest, 0)) for i in rows)


def peers(case: Case) -> dict[str, Callable]:
    """The dense form, compiled, and the kernel of the paper's authors where it is installed."""
    query, key, _, options = case.arguments
    others = {name: option for name, option in options.items() if name not in ("bias", "scale")}
    # Without options every query sees every key: no table of the support to read.
    support = band_support(query, key, **others) if others else None
    return {
        "torch.sigmoid, compiled": partial(compiled_dense_form(), support),
        "FlashSigmoid": flash_sigmoid,
    }


def compiled_dense_form() -> Callable:
    """`dense_form`, compiled for exactly these shapes, and stopped where its table does not fit."""
    torch.compiler.reset()  # after eight shapes the compiler would fall back to the slow form
    compiled = torch.compile(dense_form, dynamic=False, fullgraph=True)

    def read(support: Tensor | None, query: Tensor, key: Tensor, value: Tensor, options: dict):
        check_table_fits(query, key)
        return compiled(query, key, value, support, options.get("bias"), options.get("scale"))

    return read


def check_table_fits(query: Tensor, key: Tensor) -> None:
    """Raise a ValueError unless four N x M tables of all heads fit in the free memory of the GPU.

    Scores, weights and the gradients of both, should the compiler fuse none of them.
    """
    if query.device.type != "cuda":
        return
    table = query.numel() // query.shape[-1] * key.shape[-2] * query.element_size()
    free, _ = torch.cuda.mem_get_info(query.device)
    if 4 * table > free:
        raise ValueError(
            f"four tables of {table / 1e9:.0f} GB do not fit in the {free / 1e9:.0f} GB left"
        )


def flash_sigmoid(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The CUDA kernel of Ramapuram et al., on tensors (B, N, H, D). Its tanh is approximate."""
    from flash_sigmoid import flash_attn_func

    unknown = set(options) - {"is_causal", "bias", "scale"}
    if unknown:
        raise ValueError(f"this peer is not asked for {', '.join(sorted(unknown))}")
    bias, is_causal = options.get("bias"), options.get("is_causal", False)
    if bias is None and is_causal:
        raise ValueError("this peer has one bias for all rows: under the causal rule, give it")
    read = flash_attn_func(
        *(tensor.transpose(1, 2) for tensor in (query, key, value)),
        softmax_scale=options.get("scale"),
        causal=is_causal,
        sigmoid_bias=-math.log(max(key.shape[-2], 1)) if bias is None else bias,
    )
    return read.transpose(1, 2)


PROOF = Proof(
    name="sigmoid_attention",
    kernel=kernel,
    reference=reference,
    cases=cases,
    launches=tuple(launches()),
    timed_cases=timed_cases,
    bytes_moved=bytes_moved,
    timed_dtypes=(torch.bfloat16,),
    operations=operations,
    peers=peers,
)
