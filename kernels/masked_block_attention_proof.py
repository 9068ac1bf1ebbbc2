"""How masked_block_attention is proved and timed: reference, inputs, launches, bytes."""

from collections.abc import Callable, Iterator

import torch
from attnlib.kernels.dense_forms import softmax_attention
from attnlib.kernels.masked_block_attention import forward_kernel, masked_block_attention
from attnlib.kernels.masked_block_attention_gradient import (
    key_gradient_kernel,
    query_gradient_kernel,
)
from attnlib.kernels.masked_block_attention_tiles import tile_within
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.peers import Support, flex_peer, sdpa_peers
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tiled_support import tiled_support
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor


def kernel(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """masked_block_attention of the predicates, tiled on the spot, as the cases hold them."""
    return masked_block_attention(
        query, key, value, tiled(query, key, options), **scale_of(options)
    )


def reference(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The definition in plain torch: the predicates asked about all pairs, and dense attention."""
    support = support_of(query, key, options["predicates"])
    return softmax_attention(query, key, value, support, options.get("scale"))


def tiled(query: Tensor, key: Tensor, options: dict):
    """The support of a case: as it is given, or made of its predicates."""
    if "support" in options:
        return options["support"]
    return tiled_support(
        *options["predicates"],
        queries=query.shape[-2],
        keys=key.shape[-2],
        batch=query.shape[:-3].numel(),
        heads=query.shape[-3] if query.dim() > 2 else 1,
        block_size=options["block_size"],
        device=query.device,
    )


def scale_of(options: dict) -> dict:
    """The scale, where a case has one."""
    return {"scale": options["scale"]} if "scale" in options else {}


def support_of(query: Tensor, key: Tensor, predicates: tuple[Callable, ...]) -> Tensor:
    """Which query sees which key, (*batch, H, N, M) with batch entries numbered through."""
    lead = (1,) * (4 - query.dim()) + tuple(query.shape[:-2])
    shape = (torch.Size(lead[:-1]).numel(), lead[-1], query.shape[-2], key.shape[-2])
    b, h, i, j = torch.meshgrid(
        *(torch.arange(n, device=query.device) for n in shape), indexing="ij"
    )
    seen = torch.ones(shape, dtype=torch.bool, device=query.device)
    for predicate in predicates:
        seen = seen & predicate(b, h, i, j)
    return seen.reshape(*query.shape[:-1], key.shape[-2])


def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The keys that are not in the future."""
    return j <= i


def window(width: int) -> Callable:
    """The last `width` keys."""
    return lambda b, h, i, j: (j <= i) & (i - j < width)


def every(step: int) -> Callable:
    """Every `step`-th key, counted from the query."""
    return lambda b, h, i, j: (i - j) % step == 0


def every_per_head(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Every key in head 0, every second in head 1, and so on."""
    return (i - j) % (h + 1) == 0


def nothing(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """No key."""
    return j < 0


def documents(*lengths: int, device: torch.device | None = None) -> Callable:
    """The keys of the query's own document, documents laid end to end."""
    numbers = torch.tensor(lengths)
    ids = torch.arange(len(lengths)).repeat_interleave(numbers).to(device)
    return lambda b, h, i, j: ids[i] == ids[j]


def first_keys(lengths: Tensor) -> Callable:
    """The keys before the padding of each batch entry."""
    return lambda b, h, i, j: j < lengths[b]


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths, and each support, tile, layout and width that has its own way to go wrong."""
    draw = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
        return numbers.to(device, dtype).requires_grad_()

    def case(name: str, queries: int, keys: int, *predicates: Callable, heads=(), **options):
        key_heads = options.pop("key_heads", heads)
        width = options.pop("width", 16)
        value_width = options.pop("value_width", width)
        options = {"block_size": 32} | options | {"predicates": predicates}
        tensors = rows(*heads, queries, width), rows(*key_heads, keys, width)
        return Case(name, (*tensors, rows(*key_heads, keys, value_width), options))

    yield case("1 key", 1, 1, causal, value_width=1)  # nothing may round
    yield case("63 keys, causal", 63, 63, causal)
    yield case("257 keys, causal, blocks of 128", 257, 257, causal, block_size=128)
    own = documents(30, 50, 20, device=device)
    yield case("causal, window and documents", 100, 100, causal, window(40), own)
    yield case("every third key, no tile full", 40, 70, every(3))
    yield case("blocks of 64 and 16", 70, 40, causal, block_size=(64, 16))
    yield case("blocks of 16 and 64", 40, 150, window(90), block_size=(16, 64))
    yield case("no pair at all", 40, 40, nothing)
    yield case("heads that differ", 40, 40, every_per_head, heads=(2,))
    lengths = torch.tensor([37, 0], device=device)
    yield case("padding, one sequence empty", 15, 40, first_keys(lengths), heads=(2, 1))
    shared = {"heads": (2, 1, 2), "key_heads": (2, 1, 1)}
    both = causal, first_keys(lengths)
    yield case("two heads share a key head, two axes of batch", 15, 40, *both, **shared)
    yield case("widths 40 and 80, every pair", 15, 40, width=40, value_width=80)
    yield case("width 1, scale 0.3", 15, 40, window(9), width=1, block_size=16, scale=0.3)
    several = rows(20, 2, 3, 16).detach()
    heads_last = [part.transpose(0, 1).requires_grad_() for part in several.unbind(2)]
    options = {"predicates": (causal,), "block_size": 16}
    yield Case("heads beside the width", (*heads_last, options))
    options = {"predicates": (every(2),), "block_size": 16}
    yield Case("scores up to 1e4", (*huge_scores(dtype, device), options))
    if device.type == "cuda":
        for width in (64, 80, 128, 256):
            for size in (16, 64, 128, (128, 32), (32, 128)):
                long = {"heads": (2, 4), "width": width, "block_size": size}
                name = f"many tiles of {size}, width {width}"
                yield case(f"{name}, causal", 1025, 1025, causal, **long)
                yield case(f"{name}, per head", 500, 700, every_per_head, window(300), **long)
        grouped = {"heads": (2, 8), "key_heads": (2, 2), "width": 128, "block_size": 128}
        yield case("many tiles, shared heads", 1500, 1500, causal, every_per_head, **grouped)


def huge_scores(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Rows of scores that are 0 but for one of 1e4 or -1e4: exact in every dtype.

    Values are unit vectors, so that nothing but the softmax itself can round.
    """
    units = 200 * torch.eye(16, dtype=torch.float64).repeat(2, 1)
    query = units[torch.arange(32) % 7] * torch.tensor([1.0, -1.0, -1.0, -1.0]).repeat(8)[:, None]
    tensors = query, units, torch.eye(16, dtype=torch.float64).repeat(2, 1)
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def launches() -> Iterator[Launch]:
    """Each kernel for each chip, with the tile that the chip gets for blocks of 128 x 128.

    Pointers and steps are multiples of 16, as torch allocates them.
    """
    for dtype, width in [
        (torch.float16, 64),
        (torch.float16, 128),
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.float32, 64),
    ]:
        for chip in SHARED_MEMORY:
            for name in ("forward", "query gradient", "key gradient"):
                yield launch(name, dtype, width, chip)


def launch(
    name: str,
    dtype: torch.dtype,
    width: int,
    chip: int,
    block_size: tuple[int, int] = (128, 128),
) -> Launch:
    """One compilation of one of the kernels."""
    compiled = {
        "forward": forward_kernel,
        "query gradient": query_gradient_kernel,
        "key gradient": key_gradient_kernel,
    }[name]
    choices = tile_within(name, width, width, dtype, SHARED_MEMORY[chip], block_size)
    warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
    constants = choices | {
        "scale": width**-0.5,
        "width": width,
        "value_width": width,
        "queries_a_block": block_size[0],
        "keys_a_block": block_size[1],
    }
    types = types_of(compiled.arg_names, constants, dtype, special_types(dtype))
    label = f"{name}, {types['query_ptr'][1:5]}, D {width}, sm_{chip}"
    return Launch(label, compiled, types, constants, warps, stages, chips=(chip,))


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to numbers of this dtype; steps are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    steps = ("i32:16",) * 3
    numbers = ("list_ptr", "mask_list_ptr", "count_ptr", "mask_ptr")
    return dict.fromkeys(numbers, "*i32:16") | {
        "log_sum_ptr": sums,
        "delta_ptr": sums,
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "list_steps": ("i32",) * 3,
        "count_steps": ("i32",) * 3,
        "counts": ("i32",) * 4,
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Causal, to be held against flash_attention; a window; documents; a support of no full tile.

    Supports are made once, before any clock runs.
    """
    batch, heads, length, width = 4, 16, 8192, 128
    query, key, value = (
        torch.randn(batch, heads, length, width, device=device, dtype=dtype).requires_grad_()
        for _ in range(3)
    )
    mixed = documents(1000, 200, 3000, 40, 1500, 2452, device=device)
    for name, predicates in [
        ("causal", (causal,)),
        ("causal, window of 1024", (causal, window(1024))),
        ("causal, six documents", (causal, mixed)),
        ("causal, every fourth key", (causal, every(4))),
    ]:
        options = {"predicates": predicates, "block_size": 128}
        options["support"] = tiled_support(
            *predicates, queries=length, keys=length, block_size=128, device=device
        )
        yield Case(f"B{batch} H{heads} N{length} D{width}, {name}", (query, key, value, options))


def bytes_moved(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Forward reads q, k, v and writes o and l; backward reads those and g, writes three.

    The timed supports leave out no query and no key, so all rows are read. The masks are counted
    once, as the kernel reads them for each head from the cache.
    """
    inputs = sum(t.numel() * t.element_size() for t in (query, key, value))
    rows = query.numel() // query.shape[-1]
    read = rows * value.shape[-1] * query.element_size()
    log_sum = rows * max(4, query.element_size())
    masks = 4 * tiled(query, key, options).masks.numel()
    return {
        "forward": inputs + read + log_sum + masks,
        "backward": 2 * inputs + 2 * read + log_sum + masks,
    }


def operations(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Two products forward and five backward, over the pairs that are seen."""
    seen = tiled(query, key, options).dense()
    pairs = int(seen.sum()) * query.shape[:-1].numel() // seen.shape[:-1].numel()
    width, value_width = query.shape[-1], value.shape[-1]
    return {
        "forward": 2 * pairs * (width + value_width),
        "backward": 2 * pairs * (3 * width + 2 * value_width),
    }


def peers(case: Case) -> dict:
    """PyTorch's own forms with the same support. FlexAttention calls the predicates itself."""
    query, key, _, options = case.arguments

    def sees(b, h, i, j):
        seen = j >= 0
        for predicate in options["predicates"]:
            seen = seen & predicate(b, h, i, j)
        return seen

    support = Support(sees, batch=None)
    return flex_peer(query, key, support, None) | sdpa_peers(query, key, support, None)


PROOF = Proof(
    name="masked_block_attention",
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
