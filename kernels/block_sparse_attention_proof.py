"""How block_sparse_attention is proved and timed: reference, inputs, launches, bytes."""

from collections.abc import Iterator

import torch
from attnlib.kernels.block_lists import BlockLists, block_count, block_lists
from attnlib.kernels.block_sparse_attention import block_sparse_attention, forward_kernel
from attnlib.kernels.block_sparse_gradient import key_gradient_kernel, query_gradient_kernel
from attnlib.kernels.block_sparse_tiles import tile_within
from attnlib.kernels.dense_forms import band_support, softmax_attention
from attnlib.kernels.flash_attention import flash_attention
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.peers import Support, flex_peer, sdpa_peers
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor

LENGTHS = (1, 15, 63, 100, 257)


def kernel(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """block_sparse_attention with its options in a dictionary, as the cases hold them."""
    return block_sparse_attention(query, key, value, **options)


def reference(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The definition in plain torch: the table expanded to a support, and dense attention."""
    options = dict(options)
    scale = options.pop("scale", None)
    return softmax_attention(query, key, value, support_of(query, key, **options), scale)


def support_of(
    query: Tensor,
    key: Tensor,
    blocks: Tensor | BlockLists,
    block_size: int | tuple[int, int],
    **band,
) -> Tensor:
    """Which query sees which key: its tile is listed, and the band and the mask allow it."""
    table = blocks.table() if isinstance(blocks, BlockLists) else blocks
    rows, columns = block_size if isinstance(block_size, tuple) else (block_size,) * 2
    every = table.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return every[..., : query.shape[-2], : key.shape[-2]] & band_support(query, key, **band)


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths, and each table, support, layout and width that has its own way to go wrong."""
    draw = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
        return numbers.to(device, dtype).requires_grad_()

    def table(queries: int, keys: int, block_size, *lead: int, kept: float = 0.5) -> Tensor:
        sizes = block_size if isinstance(block_size, tuple) else (block_size,) * 2
        shape = block_count(queries, sizes[0]), block_count(keys, sizes[1])
        return (torch.rand((*lead, *shape), generator=draw) < kept).to(device)

    def case(name: str, queries: int, keys: int, heads=(), width=16, block_size=32, **options):
        key_heads = options.pop("key_heads", heads)
        value_width = options.pop("value_width", width)
        lead = options.pop("lead", ())
        kept = options.pop("kept", 0.5)
        tensors = rows(*heads, queries, width), rows(*key_heads, keys, width)
        options["block_size"] = block_size
        options["blocks"] = table(queries, keys, block_size, *lead, kept=kept)
        return Case(name, (*tensors, rows(*key_heads, keys, value_width), options))

    causal = {"is_causal": True}
    for length in LENGTHS:
        values = {"value_width": 16 if length > 1 else 1}  # one key: nothing may round
        values["block_size"] = 64 if length < 257 else 128
        yield case(f"{length} keys, causal", length, length, kept=0.7, **values, **causal)
        if length in (1, 100):
            yield case(f"{length} keys, all tiles", length, length, kept=1.1, **values)
    yield case("no tile at all", 63, 100, kept=-1.0)
    yield case("blocks of 32 and 64", 63, 150, block_size=(32, 64))
    yield case("blocks of 64 and 16, causal", 70, 40, block_size=(64, 16), kept=0.7, **causal)
    yield case("queries continue the keys", 30, 150, **causal, query_offset=110, kept=0.7)
    yield case("first rows see nothing", 63, 30, **causal, query_offset=-20, kept=0.7)
    yield case("a table for all heads", 30, 40, heads=(2, 1), **causal)
    yield case("a table for each head", 15, 40, heads=(2,), lead=(2,))
    yield case("two axes of batch", 15, 30, heads=(2, 2, 1), lead=(2, 1, 1))
    shared = {"heads": (4,), "key_heads": (2,), "lead": (4,)}
    yield case("two heads share a key head", 15, 40, **shared, **causal, kept=0.7)
    mask = (torch.rand((2, 40), generator=draw) < 0.6).to(device)
    mask[1] = False
    yield case("padded keys, one sequence empty", 15, 40, heads=(2, 1), key_mask=mask, kept=0.7)
    yield case("widths 40 and 80", 40, 40, width=40, value_width=80, **causal, kept=0.7)
    yield case("width 1, scale 0.3", 15, 40, width=1, block_size=16, scale=0.3)
    lists = block_lists(table(15, 40, 16, kept=0.6))
    tensors = rows(15, 16), rows(40, 16), rows(40, 16)
    yield Case("lists in place of a table", (*tensors, {"blocks": lists, "block_size": 16}))
    several = rows(15, 2, 3, 16).detach()
    heads_last = [part.transpose(0, 1).requires_grad_() for part in several.unbind(2)]
    options = {"blocks": table(15, 15, 16, kept=1.1), "block_size": 16}
    yield Case("heads beside the width", (*heads_last, options | causal))
    options = {"blocks": table(40, 40, 32, kept=0.7), "block_size": 32}
    yield Case("scores up to 1e4", (*huge_scores(dtype, device), options))
    if device.type == "cuda":
        for width in (64, 80, 128, 256):
            for size in (16, 64, 128, (128, 32), (32, 128)):
                for name, more in [("", {}), (", causal", causal)]:
                    long = {"heads": (2, 4), "lead": (2, 4), "width": width, "block_size": size}
                    name = f"many tiles of {size}, width {width}{name}"
                    yield case(name, 1025, 1025, **long, **more)
        shared = {"heads": (2, 8), "key_heads": (2, 2), "lead": (8,), "width": 128}
        yield case("many tiles, shared heads", 500, 1500, **shared, **causal, query_offset=1000)
        yield case("a long list", 300, 40_000, heads=(2,), width=64, block_size=64)


def huge_scores(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Rows of scores that are 0 but for one of 1e4 or -1e4: exact in every dtype.

    Values are unit vectors, so that nothing but the softmax itself can round.
    """
    units = 200 * torch.eye(16, dtype=torch.float64).repeat(3, 1)[:40]
    query = units[torch.arange(40) % 7] * torch.tensor([1.0, -1.0, -1.0, -1.0]).repeat(10)[:, None]
    tensors = query, units, torch.eye(16, dtype=torch.float64).repeat(3, 1)[:40]
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
    for chip in SHARED_MEMORY:
        yield launch("forward", torch.bfloat16, 128, chip, filtered=True)


def launch(
    name: str,
    dtype: torch.dtype,
    width: int,
    chip: int,
    block_size: tuple[int, int] = (128, 128),
    filtered: bool = False,
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
        "key_mask_ptr": None,
        "scale": width**-0.5,
        "width": width,
        "value_width": width,
        "queries_a_block": block_size[0],
        "keys_a_block": block_size[1],
    }
    if name == "forward" and not filtered:
        constants |= dict.fromkeys(("skipped_ptr", "visited_ptr", "log_skip_below"))
    types = types_of(compiled.arg_names, constants, dtype, special_types(dtype))
    label = f"{name}{', filtered' * filtered}, {types['query_ptr'][1:5]}, D {width}, sm_{chip}"
    return Launch(label, compiled, types, constants, warps, stages, chips=(chip,))


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to numbers of this dtype; steps are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    steps = ("i32:16",) * 3
    numbers = ("list_ptr", "count_ptr", "skipped_ptr", "visited_ptr")
    return dict.fromkeys(numbers, "*i32:16") | {
        "log_sum_ptr": sums,
        "delta_ptr": sums,
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "list_steps": ("i32",) * 3,
        "count_steps": ("i32",) * 3,
        "counts": ("i32",) * 4,
        "band": ("i32",) * 2,
        "log_skip_below": "fp32",
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A quarter of the tiles at random, and all of them: what the list costs. Lists made once."""
    batch, heads, length, width, size = 4, 16, 8192, 128, 128
    query, key, value = (
        torch.randn(batch, heads, length, width, device=device, dtype=dtype).requires_grad_()
        for _ in range(3)
    )
    for share, name in [(0.25, "a quarter"), (1.0, "all")]:
        for is_causal in (False, True):
            table = random_table(length // size, share, is_causal).to(device)
            options = {"blocks": block_lists(table), "block_size": size, "is_causal": is_causal}
            shape = f"B{batch} H{heads} N{length} D{width}"
            name_of_case = f"{shape}, {name} of the tiles{', causal' * is_causal}"
            yield Case(name_of_case, (query, key, value, options))


def random_table(blocks: int, share: float, is_causal: bool) -> Tensor:
    """Of the tiles that a row of tiles may see, this share, drawn at random: the same each time."""
    drawn = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(0))
    if is_causal:
        drawn = drawn.masked_fill(torch.ones_like(drawn).triu(1) > 0, torch.inf)
    visible = drawn.isfinite().sum(-1, keepdim=True)
    return drawn.argsort(-1).argsort(-1) < (share * visible).ceil()


def bytes_moved(query: Tensor, key: Tensor, value: Tensor, options: dict) -> dict[str, int]:
    """Forward reads q, k, v and writes o and l; backward reads those and g, writes three.

    The timed tables leave out no row and no column of tiles, so all rows are read. The lists are
    thousands of times smaller.
    """
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
    band = {k: v for k, v in options.items() if k in ("blocks", "block_size", "is_causal")}
    support = support_of(query, key, query_offset=options.get("query_offset", 0), **band)
    pairs = int(support.sum()) * query.shape[:-1].numel() // support.shape[:-1].numel()
    width, value_width = query.shape[-1], value.shape[-1]
    return {
        "forward": 2 * pairs * (width + value_width),
        "backward": 2 * pairs * (3 * width + 2 * value_width),
    }


def peers(case: Case) -> dict:
    """PyTorch's own forms with the same support; where all tiles are read, our flash attention.

    Its time is the yardstick of the cases with a quarter of the tiles too: they compute another
    function, so it is no peer of theirs.
    """
    query, key, _, options = case.arguments
    table, size = options["blocks"].table(), options["block_size"]
    is_causal = options["is_causal"]

    def sees(b, h, i, j):
        seen = table[i // size, j // size]
        return seen & (j <= i) if is_causal else seen

    support = Support(sees, batch=None)
    named = flex_peer(query, key, support, None) | sdpa_peers(query, key, support, None)
    if table.all() or (is_causal and table.tril().equal(torch.ones_like(table).tril())):
        named["flash_attention"] = lambda query, key, value, options: flash_attention(
            query, key, value, is_causal=is_causal
        )
    return named


PROOF = Proof(
    name="block_sparse_attention",
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
