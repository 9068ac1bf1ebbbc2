"""How neighborhood_attention is proved and timed: its reference, inputs, launches and peers."""

from collections.abc import Callable, Iterator
from importlib import import_module
from math import prod

import attnlib.kernels.peers as pytorch_peers
import torch
from attnlib.kernels.dense_forms import softmax_attention
from attnlib.kernels.grid_launch import for_each_axis, with_shapes
from attnlib.kernels.neighborhood_attention import (
    TILES,
    forward_kernel,
    key_gradient_kernel,
    neighborhood_attention,
    query_gradient_kernel,
)
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tile_choice import tile
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor


def kernel(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """neighborhood_attention with its options in a dictionary, as the cases hold them."""
    return neighborhood_attention(query, key, value, **options)


def reference(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The definition in plain torch: all scores, and a table of who sees whom."""
    axes = len(rules_of(options))
    support = grid_support(query.shape[-1 - axes : -1], options).to(query.device)
    flat = (tensor.flatten(-1 - axes, -2) for tensor in (query, key, value))
    read = softmax_attention(*flat, support, options.get("scale"))
    return read.unflatten(-2, query.shape[-1 - axes : -1])


def rules_of(options: dict) -> list[tuple]:
    """(window, stride, dilation, is_causal) of each axis of the grid."""
    axes = len(options["window"]) if isinstance(options["window"], tuple) else 1
    absent = {"stride": 1, "dilation": 1, "is_causal": False}
    rules = (
        for_each_axis(name, options.get(name, absent.get(name)), axes)[3 - axes :]
        for name in ("window", "stride", "dilation", "is_causal")
    )
    return list(zip(*rules, strict=True))


def grid_support(grid: tuple[int, ...], options: dict) -> Tensor:
    """Which place of the grid sees which, (N, N) for N places: it does so on every axis."""
    support = torch.ones(1, 1, dtype=torch.bool)
    for length, rule in zip(grid, rules_of(options), strict=True):
        support = torch.kron(support, axis_support(length, *rule))
    return support


def axis_support(length: int, window: int, stride: int, dilation: int, is_causal: bool) -> Tensor:
    """Which place of one axis sees which, query by query."""
    support = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        support[query, keys_seen(query, length, window, stride, dilation, is_causal)] = True
    return support


def keys_seen(
    query: int, length: int, window: int, stride: int, dilation: int, is_causal: bool
) -> list[int]:
    """The keys of one query on one axis, by the definition."""
    same_residue = list(range(query % dilation, length, dilation))
    place = same_residue.index(query)
    group = place - place % stride
    members = same_residue[group : group + stride]
    if is_causal:
        leader = same_residue.index(members[-1])
        return same_residue[max(leader - window + 1, 0) : place + 1]
    leader = min(group + stride // 2, len(same_residue) - 1)
    first = leader - window // 2
    first = min(max(first, 0), len(same_residue) - window)
    return same_residue[first : first + window]


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Lines, planes and volumes; windows, strides, dilations and causal axes; layouts, widths."""
    draw = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
        return numbers.to(device, dtype).requires_grad_()

    def case(name: str, grid: tuple, window, heads=(1,), width=16, value_width=16, **options):
        key_heads = options.pop("key_heads", heads)
        tensors = rows(*heads, *grid, width), rows(*key_heads, *grid, width)
        tensors = *tensors, rows(*key_heads, *grid, value_width)
        return Case(name, (*tensors, {"window": window, **options}))

    yield case("1 place", (1,), 1, value_width=1)
    yield case("15 places", (15,), 5)
    yield case("63 places, even window", (63,), 8)
    mixed = {"stride": (2, 1), "dilation": (1, 3), "is_causal": (False, True)}
    yield case("7 x 15, all options", (7, 15), (5, 4), **mixed)
    yield case("two heads share a key head", (5, 7), (5, 3), heads=(4,), key_heads=(2,))
    yield Case("scores up to 1e4", (*huge_scores(dtype, device), {"window": 7}))
    if device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        return  # interpreted, half precision differs from float32 in nothing but its rounding
    yield case("100 places, window of all", (100,), 100)
    yield case("257 places", (257,), 21)
    yield case("150 places, causal", (150,), 70, is_causal=True)
    yield case("window of 1", (63,), 1, value_width=1)
    yield case("100 places, stride 3", (100,), 8, stride=3)
    yield case("100 places, stride 4, causal", (100,), 7, stride=4, is_causal=True)
    yield case("blocks of 7", (63,), 7, stride=7)
    yield case("100 places, all options", (100,), 6, stride=4, dilation=2, is_causal=True)
    yield case("13 x 15, strides", (13, 15), (5, 6), stride=(2, 3))
    yield case("6 x 5, dilation leaves no place outside", (6, 5), (3, 5), dilation=(2, 1))
    yield case("15 x 1", (15, 1), (5, 1))
    volume = {"stride": (1, 2, 3), "dilation": (2, 1, 1), "is_causal": (True, False, False)}
    yield case("5 x 4 x 7, all options", (5, 4, 7), (2, 3, 4), **volume)
    batch = {"heads": (2, 1, 2), "key_heads": (2, 1, 1)}
    yield case("two axes of batch, all heads share a key head", (15,), 5, **batch)
    yield case("widths 40 and 80", (7, 9), (3, 3), width=40, value_width=80)
    yield case("widths 80 and 3", (7, 9), (3, 3), width=80, value_width=3)
    yield case("width 1, scale 0.3", (15,), 5, width=1, value_width=1, scale=0.3)
    several = rows(1, 6, 7, 2, 3, 16).detach()
    heads_last = [part.movedim(3, 1).requires_grad_() for part in several.unbind(4)]
    yield Case("heads beside the width", (*heads_last, {"window": (3, 5)}))
    wider = [rows(1, 7, 16, 20).detach()[:, :, ::2, 2:18].requires_grad_() for _ in range(3)]
    yield Case("every second column of a wider tensor", (*wider, {"window": (3, 5)}))
    if device.type == "cuda":
        for width in (64, 80, 128, 256):
            yield case(f"33 x 70, width {width}", (33, 70), (7, 13), (2, 4), width, width)
        yield case("2000 places, causal", (2000,), 300, (2, 4), 64, 64, is_causal=True)
        yield case("40 x 41, dilated", (40, 41), (7, 6), (2, 4), 64, 64, dilation=(3, 2))
        yield case("40 x 48, strided", (40, 48), (16, 8), (2, 4), 128, 64, stride=(8, 8))
        yield case("9 x 14 x 20", (9, 14, 20), (5, 4, 7), (2, 2), 64, 64)
        shared = {"heads": (2, 8), "key_heads": (2, 2)}
        yield case("33 x 34, shared heads", (33, 34), (9, 9), width=128, value_width=64, **shared)


def huge_scores(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Rows of scores that are 0 but for one of 1e4 or -1e4: exact in every dtype.

    Values are unit vectors, so that nothing but the softmax itself can round.
    """
    units = 200 * torch.eye(16, dtype=torch.float64)
    query = units[(torch.arange(16) + 2) % 16] * torch.tensor([1.0, -1.0]).repeat(8)[:, None]
    tensors = query, units, torch.eye(16, dtype=torch.float64)
    return [tensor[None].to(device, dtype).requires_grad_() for tensor in tensors]


SLIDING = {"stride": (1, 1, 1), "dilation": (1, 1, 1)}
PLANE = (1, 128, 128), SLIDING | {"window": (1, 13, 13), "is_causal": (False, False, False)}
LINE = (1, 1, 32768), SLIDING | {"window": (1, 1, 2048), "is_causal": (False, False, True)}
VOLUME = (
    (30, 48, 80),
    {
        "window": (9, 12, 12),
        "stride": (1, 3, 4),
        "dilation": (2, 1, 3),
        "is_causal": (True, False, False),
    },
)


def launches() -> Iterator[Launch]:
    """Each kernel for each chip, with the tile that the chip gets for a window on a grid.

    Pointers and steps are multiples of 16, as torch allocates them.
    """
    for dtype, width, chips, label, (grid, rule) in [
        (torch.float16, 64, SHARED_MEMORY, "3 axes, all options", VOLUME),
        (torch.bfloat16, 64, SHARED_MEMORY, "2 axes", PLANE),
        (torch.float16, 128, SHARED_MEMORY, "3 axes, all options", VOLUME),
        (torch.bfloat16, 128, SHARED_MEMORY, "1 axis", LINE),
        (torch.float32, 64, (90,), "2 axes", PLANE),
    ]:
        for chip in chips:
            for name, compiled in [
                ("forward", forward_kernel),
                ("query gradient", query_gradient_kernel),
                ("key gradient", key_gradient_kernel),
            ]:
                choices = tile(TILES, name, width, width, dtype, SHARED_MEMORY[chip])
                choices = with_shapes(name, choices, grid, rule)
                warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
                widths = {"scale": width**-0.5, "width": width, "value_width": width}
                constants = choices | rule | widths
                types = types_of(compiled.arg_names, constants, dtype, special_types(dtype))
                text = f"{name}, {label}, {types['query_ptr'][1:5]}, D {width}, sm_{chip}"
                yield Launch(text, compiled, types, constants, warps, stages, chips=(chip,))


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to numbers of this dtype; steps are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    steps = ("i32:16",) * 5
    return {
        "log_sum_ptr": sums,
        "delta_ptr": sums,
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "grid_shape": ("i32",) * 3,
        "heads": "i32",
        "group": "i32",
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A plane, as attention-gym times it, with and without a stride; a line, as NATTEN does."""
    for name, batch, heads, grid, width, options in [
        ("13 x 13", 16, 16, (128, 128), 64, {"window": (13, 13)}),
        ("16 x 16, stride 8", 16, 16, (128, 128), 64, {"window": (16, 16), "stride": (8, 8)}),
        ("2048, causal", 1, 24, (32768,), 128, {"window": 2048, "is_causal": True}),
    ]:
        shape = (batch, heads, *grid, width)
        tensors = (
            torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)
        )
        places = " x ".join(map(str, grid))
        label = f"B{batch} H{heads} {places} D{width}, window {name}"
        yield Case(label, (*tensors, options))


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
    rules = rules_of(options)
    grid = query.shape[-1 - len(rules) : -1]
    grids = query.numel() // query.shape[-1] // prod(grid)
    pairs = grids * prod(pairs_seen(*axis) for axis in zip(grid, rules, strict=True))
    width, value_width = query.shape[-1], value.shape[-1]
    return {
        "forward": 2 * pairs * (width + value_width),
        "backward": 2 * pairs * (3 * width + 2 * value_width),
    }


def pairs_seen(length: int, rule: tuple) -> int:
    """How many pairs of a query and a key one axis holds."""
    window, _, _, is_causal = rule
    if not is_causal:
        return length * window
    return sum(len(keys_seen(query, length, *rule)) for query in range(length))


def peers(case: Case) -> dict[str, Callable]:
    """FlexAttention over the places as one row, and the package NATTEN where it is installed."""
    query, key, _, options = case.arguments
    rules = rules_of(options)
    grid = query.shape[-1 - len(rules) : -1]

    def in_a_row(tensor: Tensor) -> Tensor:
        return tensor.flatten(-1 - len(rules), -2)

    support = pytorch_peers.Support(support_of(grid, rules), batch=None)
    named = pytorch_peers.flex_peer(in_a_row(query), in_a_row(key), support, options.get("scale"))
    flex = named["FlexAttention"]

    def flex_read(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
        read = flex(in_a_row(query), in_a_row(key), in_a_row(value))
        return read.unflatten(-2, grid)

    return {"FlexAttention": flex_read, "NATTEN": natten_read}


def support_of(grid: tuple[int, ...], rules: list[tuple]) -> Callable:
    """sees(b, h, i, j) of FlexAttention, for places counted row by row."""

    def sees(b, h, i, j):
        seen = True
        for length, (window, stride, dilation, is_causal) in zip(
            grid[::-1], rules[::-1], strict=True
        ):
            query, key = i % length, j % length
            i, j = i // length, j // length
            same_residue = query % dilation == key % dilation
            places = (length - query % dilation + dilation - 1) // dilation
            query, key = query // dilation, key // dilation
            group = query - query % stride
            if is_causal:
                leader = torch.clamp(group + stride - 1, max=places - 1)
                in_window = (key > leader - window) & (key <= query)
            else:
                leader = torch.clamp(group + stride // 2, max=places - 1)
                first = torch.clamp(leader - window // 2, min=0)
                first = torch.minimum(first, places - window)
                in_window = (key >= first) & (key < first + window)
            seen = seen & same_residue & in_window
        return seen

    return sees


def natten_read(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """NATTEN's own choice of a kernel. It keeps heads beside the width; the copies are counted."""
    natten = import_module("natten")
    windows, strides, dilations, causal = zip(*rules_of(options), strict=True)
    forms = {1: natten.na1d, 2: natten.na2d, 3: natten.na3d}
    read = forms[len(windows)](
        *(tensor.movedim(1, -2).contiguous() for tensor in (query, key, value)),
        kernel_size=windows,
        stride=strides,
        dilation=dilations,
        is_causal=causal,
        scale=options.get("scale"),
    )
    return read.movedim(-2, 1)


PROOF = Proof(
    name="neighborhood_attention",
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
