"""How packed_attention is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Iterator

import torch
from attnlib.kernels.dense_forms import band_support, softmax_attention
from attnlib.kernels.flash_attention import TILES
from attnlib.kernels.flash_attention_proof import huge_scores, pairs_seen
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.packed_attention import forward_kernel, packed_attention
from attnlib.kernels.packed_attention_gradient import key_gradient_kernel, query_gradient_kernel
from attnlib.kernels.peers import Support, flex_peer
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tile_choice import tile
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor


def kernel(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """packed_attention with its options in a dictionary, as the cases hold them."""
    return packed_attention(query, key, value, **options)


def reference(query: Tensor, key: Tensor, value: Tensor, options: dict) -> Tensor:
    """The definition in plain torch: dense attention for each sequence alone, then end to end."""
    options = dict(options)
    query_starts = options.pop("query_starts").tolist()
    key_starts = options.pop("key_starts", None)
    key_starts = query_starts if key_starts is None else key_starts.tolist()
    scale = options.pop("scale", None)
    reads = []
    for number in range(len(query_starts) - 1):
        rows = slice(query_starts[number], query_starts[number + 1])
        columns = slice(key_starts[number], key_starts[number + 1])
        own = query[..., rows, :], key[..., columns, :], value[..., columns, :]
        if own[0].shape[-2] == 0 or own[1].shape[-2] == 0:  # no row, or rows that see nothing
            reads.append(own[0].sum(-1, keepdim=True) * 0 * value.new_ones(value.shape[-1]))
            continue
        support = band_support(own[0], own[1], **options)
        reads.append(softmax_attention(*own, support, scale))
    return torch.cat(reads, dim=-2) + 0 * (key.sum() + value.sum())


def starts_of(*lengths: int) -> Tensor:
    """Where sequences of these lengths start, laid end to end: 0, and where each ends."""
    return torch.tensor([0, *lengths]).cumsum(0)


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths, and each mix of lengths, support, layout and width that can go wrong."""
    draw = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
        return numbers.to(device, dtype).requires_grad_()

    def case(name: str, lengths, key_lengths=None, heads=(), width=16, **options):
        key_heads = options.pop("key_heads", heads)
        value_width = options.pop("value_width", width)
        options["query_starts"] = starts_of(*lengths).to(device)
        if key_lengths is not None:
            options["key_starts"] = starts_of(*key_lengths).to(device)
        keys = sum(lengths if key_lengths is None else key_lengths)
        tensors = rows(*heads, sum(lengths), width), rows(*key_heads, keys, width)
        return Case(name, (*tensors, rows(*key_heads, keys, value_width), options))

    causal = {"is_causal": True}
    for length in (1, 257):
        values = {"value_width": 16 if length > 1 else 1}  # one key: nothing may round
        yield case(f"one sequence of {length}, causal", (length,), **values, **causal)
    yield case("lengths 3, 70, 1 and 26, causal", (3, 70, 1, 26), **causal)
    yield case("window of 20 in each sequence", (30, 5, 65), window=20)
    yield case("sequences of one token", (1,) * 4, value_width=1)
    yield case("empty sequences", (0, 20, 0, 0, 9, 0), **causal)
    yield case("more keys than queries, causal", (10, 5), (30, 70), **causal)
    yield case("more queries than keys, causal", (40, 23), (10, 5), **causal)
    yield case("queries without keys, keys without queries", (9, 7, 0, 5), (8, 0, 30, 6))
    yield case("two heads share a key head", (20, 43), heads=(2,), key_heads=(1,), **causal)
    yield case("pairs of heads share a key head", (9,), (33,), heads=(4,), key_heads=(2,), width=1)
    yield case("widths 40 and 80, scale 0.3", (15, 48), width=40, value_width=80, scale=0.3)
    several = rows(40, 2, 3, 16).detach()
    heads_last = [part.transpose(0, 1).requires_grad_() for part in several.unbind(2)]
    options = causal | {"query_starts": starts_of(17, 23).to(device, torch.int32)}
    yield Case("heads beside the width, int32 starts", (*heads_last, options))
    options = {"query_starts": starts_of(15, 0), "key_starts": starts_of(16, 0)}
    yield Case("scores up to 1e4", (*huge_scores(dtype, device), options))
    if device.type == "cuda":
        mixed = (300, 1, 0, 1025, 17, 640, 128, 77)
        for width in (64, 80, 128, 256):
            for name, options in [("", {}), (", causal", causal), (", window", {"window": 300})]:
                many = {"heads": (4,), "width": width}
                yield case(f"many tiles, width {width}{name}", mixed, **many, **options)
        shared = {"heads": (8,), "key_heads": (2,), "width": 128, "value_width": 64}
        yield case("many tiles, shared heads", mixed, mixed[::-1], **shared, **causal)


def launches() -> Iterator[Launch]:
    """Each kernel for each chip, with the tile that the chip gets. Causal, window, full: the same.

    Pointers and steps are multiples of 16, as torch allocates them.
    """
    for dtype, width in [
        (torch.float16, 64),
        (torch.float16, 128),
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.float32, 64),
    ]:
        for chip, shared_memory in SHARED_MEMORY.items():
            for name, compiled in [
                ("forward", forward_kernel),
                ("query gradient", query_gradient_kernel),
                ("key gradient", key_gradient_kernel),
            ]:
                choices = tile(TILES, name, width, width, dtype, shared_memory)
                warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
                constants = choices | {
                    "scale": width**-0.5,
                    "width": width,
                    "value_width": width,
                }
                types = types_of(compiled.arg_names, constants, dtype, special_types(dtype))
                label = f"{name}, {types['query_ptr'][1:5]}, D {width}, sm_{chip}"
                yield Launch(label, compiled, types, constants, warps, stages, chips=(chip,))


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to numbers of this dtype; steps are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    steps = ("i32:16",) * 2
    return {
        "list_ptr": "*i32:16",
        "query_starts_ptr": "*i64:16",
        "key_starts_ptr": "*i64:16",
        "log_sum_ptr": sums,
        "delta_ptr": sums,
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "counts": ("i32",) * 4,
        "band": ("i32",) * 2,
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Equal lengths, what packing costs; lengths drawn from 16 to 2048; many short sequences."""
    heads, total, width = 16, 16_384, 128
    drawn = torch.randint(16, 2048, (64,), generator=torch.Generator().manual_seed(0))
    mixed = drawn[drawn.cumsum(0) <= total].tolist()
    for name, lengths in [
        ("8 of 2048", [2048] * 8),
        ("mixed lengths", [*mixed, total - sum(mixed)]),
        ("128 of 128", [128] * 128),
    ]:
        query, key, value = (
            torch.randn(heads, total, width, device=device, dtype=dtype).requires_grad_()
            for _ in range(3)
        )
        options = {"query_starts": starts_of(*lengths), "is_causal": True}
        shape = f"H{heads} N{total} D{width}"
        yield Case(f"{shape}, {name}, causal", (query, key, value, options))


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
    """Two products forward and five backward, over the pairs of a query and a key that it sees."""
    query_starts = options["query_starts"]
    lengths = query_starts.diff().tolist(), options.get("key_starts", query_starts).diff().tolist()
    heads = query.shape[0] if query.dim() == 3 else 1
    pairs = heads * sum(pairs_seen(*of_both, options) for of_both in zip(*lengths, strict=True))
    width, value_width = query.shape[-1], value.shape[-1]
    return {
        "forward": 2 * pairs * (width + value_width),
        "backward": 2 * pairs * (3 * width + 2 * value_width),
    }


def peers(case: Case) -> dict:
    """PyTorch's own varlen attention, and FlexAttention with the sequences as a block mask."""
    query, key, _, options = case.arguments
    starts, is_causal = options["query_starts"], options.get("is_causal", False)
    lengths = starts.diff()
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths).to(query.device)
    on_device, longest = starts.to(query.device, torch.int32), int(lengths.max())

    def sees(b, h, i, j):
        own = sequence[i] == sequence[j]
        return own & (j <= i) if is_causal else own

    def varlen(query, key, value, options):
        from torch.nn.attention.varlen import varlen_attn

        rows_first = (tensor.transpose(0, 1) for tensor in (query, key, value))
        window = (-1, 0) if is_causal else (-1, -1)
        ends = on_device, on_device, longest, longest
        return varlen_attn(*rows_first, *ends, window_size=window).transpose(0, 1)

    support = Support(sees, batch=None)
    flex = flex_peer(query[None], key[None], support, None)["FlexAttention"]

    def flex_without_batch(query, key, value, options):
        return flex(query[None], key[None], value[None])[0]

    return {"torch varlen_attn": varlen, "FlexAttention": flex_without_batch}


PROOF = Proof(
    name="packed_attention",
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
