"""How scored_attention is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from attnlib.kernels.bands import band_of
from attnlib.kernels.dense_forms import band_support, for_every_head
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.peers import BACKENDS, support_of
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.scored_attention import forward_kernel, scored_attention
from attnlib.kernels.scored_attention_gradient import (
    bias_gradient_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from attnlib.kernels.scored_attention_tiles import tile_within
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

LENGTHS = (1, 15, 63, 100, 257)
OF_SCORES = ("softcap", "scale")  # options that say nothing of the support


def kernel(query, key, value, sink_logit, alibi_slopes, relative_bias, options: dict) -> Tensor:
    """scored_attention as the cases call it: tables in a row, other options in a dictionary."""
    tables = {
        "sink_logit": sink_logit,
        "alibi_slopes": alibi_slopes,
        "relative_bias": relative_bias,
    }
    return scored_attention(query, key, value, **tables, **options)


def reference(query, key, value, sink_logit, alibi_slopes, relative_bias, options: dict) -> Tensor:
    """The definition in plain torch: all N x M scores, and the sink as one more column."""
    support = band_support(query, key, **support_options(options))
    if query.dim() == 2:
        query, key, value = query[None], key[None], value[None]
        read = dense(query, key, value, support, sink_logit, alibi_slopes, relative_bias, options)
        return read[0]
    return dense(query, key, value, support, sink_logit, alibi_slopes, relative_bias, options)


def dense(query, key, value, support, sink_logit, alibi_slopes, relative_bias, options) -> Tensor:
    """`reference` for tensors that have an axis of heads."""
    key, value = (for_every_head(tensor, query) for tensor in (key, value))
    scale, softcap = options.get("scale"), options.get("softcap")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (query @ key.mT)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = distances(query, key, options.get("query_offset", 0))
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * distance.abs()
    if relative_bias is not None:
        reach = relative_bias.shape[1] // 2
        scores = scores + relative_bias[:, distance.clamp(-reach, reach) + reach]
    scores = torch.where(support, scores, -torch.inf)
    if sink_logit is None:  # a row that sees nothing gives all its weight to the column of the sink
        nothing = ~support.any(-1, keepdim=True)
        column = torch.where(nothing, 0.0, -torch.inf).to(scores)
    else:
        column = sink_logit.to(scores)[:, None, None]
    column = column.expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([column, scores], -1), -1)[..., 1:] @ value


def distances(query: Tensor, key: Tensor, query_offset: int) -> Tensor:
    """j - (i + query_offset) for all queries and keys, (N, M)."""
    places = torch.arange(query.shape[-2], device=query.device) + query_offset
    return torch.arange(key.shape[-2], device=query.device) - places[:, None]


def support_options(options: dict) -> dict:
    return {name: option for name, option in options.items() if name not in OF_SCORES}


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Each option alone and all together, at odd lengths and in each layout and support."""
    draw = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
        return numbers.to(device, dtype).requires_grad_()

    # The gradient of a sink is a few numbers, each with the rounding of o as it was stored: half
    # precision says nothing of it that a test with many heads does not say better.
    decides = dtype in (torch.float64, torch.float32)

    def tables(heads: int, sink=False, slopes=False, reach: int | None = None) -> tuple:
        return (
            rows(heads).requires_grad_(decides) if sink else None,
            rows(heads).detach().abs() / 4 if slopes else None,
            None if reach is None else rows(heads, 2 * reach + 1),
        )

    def case(name: str, queries: int, keys: int, heads=(1,), width=16, value_width=16, **options):
        key_heads = options.pop("key_heads", heads)
        changes = {k: options.pop(k) for k in ("sink", "slopes", "reach") if k in options}
        tensors = rows(*heads, queries, width), rows(*key_heads, keys, width)
        of_heads = tables(heads[-1] if heads else 1, **changes)
        return Case(name, (*tensors, rows(*key_heads, keys, value_width), *of_heads, options))

    def mask(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=draw) < 0.6).to(device)

    causal = {"is_causal": True}
    every = {"sink": True, "slopes": True, "reach": 5, "softcap": 2.0}
    yield case("15 keys, all changes, no heads", 15, 15, heads=(), **every, **causal)
    yield case("63 keys, no change", 63, 63)
    yield case("63 keys, sink", 63, 63, heads=(2,), sink=True, **causal)
    yield case("63 keys, cap", 63, 63, softcap=1.5, **causal)
    yield case("63 keys, slopes", 63, 63, slopes=True)
    yield case("63 keys, biases", 63, 63, reach=9, **causal)
    yield case("100 keys, all changes", 100, 100, **every)
    yield Case("scores, sinks and biases up to 1e4", huge(dtype, device))
    if device.type == "cpu" and not decides:
        return  # which keys a row sees, and at what distance, is decided in float64 and float32
    yield case("1 key, sink", 1, 1, sink=True)
    shared = {"heads": (4,), "key_heads": (2,), "value_width": 40}
    yield case("two heads share a key head", 15, 100, **shared, **every, query_offset=85, **causal)
    yield case("257 keys, all changes, causal", 257, 257, **every, **causal)
    yield case("257 keys, biases, window of 70", 257, 257, reach=100, window=70)
    yield case("biases wider than the table", 15, 20, reach=40)
    yield case("first rows see nothing, sink", 100, 63, **every, **causal, query_offset=-30)
    yield case("first rows see nothing", 100, 63, slopes=True, reach=4, **causal, query_offset=-30)
    yield case("window past the last key", 63, 20, heads=(3,), **every, window=5)
    padding = mask(2, 70)
    padding[1] = False
    empty = {"heads": (2, 1), "key_mask": padding}
    yield case("padded keys, one sequence empty", 63, 70, **empty, **every)
    yield case("padded keys, one sequence empty, no sink", 63, 70, **empty, slopes=True, reach=2)
    yield case("padded keys in full tiles", 15, 200, key_mask=mask(200), slopes=True, softcap=2.0)
    yield case("two axes of batch", 15, 15, heads=(2, 1, 1), **every)
    yield case("widths 40 and 80", 63, 63, width=40, value_width=80, **every, **causal)
    yield case("width 1, scale 0.3", 15, 15, width=1, value_width=1, scale=0.3, **every)
    yield case("width 256", 15, 63, width=256, value_width=256, **every)
    several = rows(2, 20, 2, 3, 16).detach()
    heads_last = [part.transpose(1, 2).requires_grad_() for part in several.unbind(3)]
    strided = rows(2, 2).detach()[:, 0], None, rows(23, 2).detach().mT
    strided = [None if t is None else t.requires_grad_() for t in strided]
    yield Case("heads beside the width, strided tables", (*heads_last, *strided, causal))
    if dtype == torch.float64:  # the gradients are what is left of sums of both signs
        yield case("1 key, all changes", 1, 1, **every)
        yield case("biases of one entry", 63, 70, heads=(3,), reach=0, sink=True)
        yield case(
            "all keys are far behind", 15, 20, heads=(3,), reach=3, sink=True, query_offset=150
        )
        yield case(
            "all keys are far ahead", 15, 20, heads=(3,), reach=3, sink=True, query_offset=-50
        )
    if device.type == "cuda":
        many = {"heads": (2, 4), "sink": True, "slopes": True, "reach": 60, "softcap": 20.0}
        for width in (64, 80, 128, 256):
            for name, options in [("", {}), (", causal", causal), (", window", {"window": 300})]:
                yield case(
                    f"many tiles, width {width}{name}", 1025, 1025, width=width, **many, **options
                )
        many |= {"heads": (2, 8), "key_heads": (2, 2), "width": 128, "value_width": 64}
        yield case("many tiles, shared heads", 500, 1500, **many, **causal, query_offset=1000)


def huge(dtype: torch.dtype, device: torch.device) -> tuple:
    """Scores that are 0 or 1e4 or -1e4; a sink of 1e4 in one head, biases of 1e4 in another.

    Values are unit vectors, so that nothing but the softmax itself can round. The relative bias
    gets no gradient: the exact one is zero or a sum of a few ones, and says nothing more.
    """
    units = 200 * torch.eye(16, dtype=torch.float64)
    query = units[torch.arange(15) % 7] * torch.tensor([1.0, -1.0, -1.0]).repeat(5)[:, None]
    bias = torch.zeros(3, 7, dtype=torch.float64)
    bias[1, 5], bias[2, 3] = 1e4, -1e4
    three = query, units, torch.eye(16, dtype=torch.float64)
    tensors = [tensor.repeat(3, 1, 1) for tensor in three]
    tensors.append(torch.tensor([1e4, 0.0, -1e4], dtype=torch.float64))
    leaves = [tensor.to(device, dtype).requires_grad_() for tensor in tensors]
    return *leaves, None, bias.to(device, dtype), {}


def launches() -> Iterator[Launch]:
    """Each kernel for each chip, with the tile that the chip gets, with and without a bias.

    Pointers and steps are multiples of 16, as torch allocates them.
    """
    every_chip = tuple(SHARED_MEMORY)
    for dtype, width, chips, has_bias in [
        (torch.float16, 64, every_chip, False),
        (torch.float16, 128, every_chip, False),
        (torch.bfloat16, 64, every_chip, True),
        (torch.bfloat16, 128, every_chip, True),
        (torch.float32, 64, (90,), True),
    ]:
        kernels = {
            "forward": forward_kernel,
            "query gradient": query_gradient_kernel,
            "key gradient": key_gradient_kernel,
        }
        if has_bias:
            kernels["bias gradient"] = bias_gradient_kernel
        for chip in chips:
            for name, compiled in kernels.items():
                yield launch(name, compiled, dtype, width, chip, has_bias)


def launch(
    name: str, compiled: object, dtype: torch.dtype, width: int, chip: int, has_bias: bool
) -> Launch:
    """One kernel with sink, cap and slopes, for values as wide as keys, with this chip's tile."""
    choices = tile_within(name, width, width, dtype, SHARED_MEMORY[chip], has_bias)
    warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
    constants = choices | {
        "key_mask_ptr": None,
        "softcap": 50.0,
        "scale": width**-0.5,
        "width": width,
        "value_width": width,
    }
    if not has_bias:
        constants["bias_ptr"] = None
    types = types_of(compiled.arg_names, constants, dtype, special_types(dtype))
    changes = "all changes" if has_bias else "no biases"
    label = f"{name}, {changes}, {types['query_ptr'][1:5]}, D {width}, sm_{chip}"
    return Launch(label, compiled, types, constants, warps, stages, chips=(chip,))


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to numbers of this dtype; steps are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    steps = ("i32:16",) * 3
    return {
        "sink_ptr": sums,
        "slope_ptr": sums,
        "bias_ptr": sums,
        "log_sum_ptr": sums,
        "delta_ptr": sums,
        "grad_diagonal_ptr": sums,
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "counts": ("i32",) * 4,
        "band": ("i32",) * 2,
        "query_offset": "i32",
        "reach": "i32",
        "first_diagonal": "i32",
        "diagonal_count": "i32",
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Each change alone: two at the shape of flash attention, a sink as gpt-oss has it, biases."""
    for name, batch, heads, key_heads, length, width, change, options in [
        ("ALiBi, causal", 4, 16, 16, 8192, 128, "slopes", {"is_causal": True}),
        ("cap, causal", 4, 16, 16, 8192, 128, None, {"is_causal": True, "softcap": 50.0}),
        ("sink, window of 128", 4, 64, 8, 8192, 64, "sink", {"is_causal": True, "window": 128}),
        ("sink, causal", 4, 64, 8, 4096, 64, "sink", {"is_causal": True}),
        ("biases up to 128", 4, 16, 16, 4096, 64, "biases", {}),
    ]:

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        tensors = [draw(batch, count, length, width) for count in (heads, key_heads, key_heads)]
        tensors.append(draw(heads) if change == "sink" else None)
        slopes = draw(heads).abs() / 16 if change == "slopes" else None
        bias = draw(heads, 257).requires_grad_() if change == "biases" else None
        leaves = [None if t is None else t.requires_grad_() for t in tensors]
        shared = f"/{key_heads}" if key_heads != heads else ""
        shape = f"B{batch} H{heads}{shared} N{length} D{width}"
        yield Case(f"{shape}, {name}", (*leaves, slopes, bias, options))


def bytes_moved(query, key, value, sink_logit, alibi_slopes, relative_bias, options) -> dict:
    """Forward reads q, k, v, tables and writes o and l; backward reads those and g, and writes
    their gradients."""
    tensors = query, key, value, sink_logit, relative_bias
    inputs = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    slopes = 0 if alibi_slopes is None else alibi_slopes.numel() * alibi_slopes.element_size()
    rows = query.numel() // query.shape[-1]
    read = rows * value.shape[-1] * query.element_size()
    log_sum = rows * max(4, query.element_size())
    return {
        "forward": inputs + slopes + read + log_sum,
        "backward": 2 * inputs + slopes + 2 * read + log_sum,
    }


def operations(query, key, value, sink_logit, alibi_slopes, relative_bias, options) -> dict:
    """Two products forward and five backward, over the pairs of a query and a key it sees."""
    queries, keys = query.shape[-2], key.shape[-2]
    is_causal, offset = options.get("is_causal", False), options.get("query_offset", 0)
    lowest, highest = band_of(queries, keys, is_causal, offset, options.get("window"))
    seen = sum(max(0, min(i + highest + 1, keys) - max(i + lowest, 0)) for i in range(queries))
    pairs = seen * (query.numel() // query.shape[-1] // queries)
    width, value_width = query.shape[-1], value.shape[-1]
    return {
        "forward": 2 * pairs * (width + value_width),
        "backward": 2 * pairs * (3 * width + 2 * value_width),
    }


def peers(case: Case) -> dict[str, Callable]:
    """FlexAttention with a score_mod; for slopes alone, SDPA with a table of what they add."""
    torch.compiler.reset()  # after eight shapes the compiler would fall back to the slow form
    named = {"FlexAttention": torch.compile(flex_read(case), dynamic=False, fullgraph=True)}
    query, key, _, sink_logit, slopes, relative_bias, options = case.arguments
    others = sink_logit, relative_bias, options.get("softcap")
    if slopes is not None and all(other is None for other in others):
        table = slope_table(query, key, slopes, options)
        named |= {
            name: partial(sdpa_read, backend, table, options) for name, backend in BACKENDS.items()
        }
    return named


def flex_read(case: Case) -> Callable:
    """FlexAttention with the changes of a case as score_mod, its band and mask as block mask.

    It has no sink. Its weights, which sum to 1, shrink by 1 / (1 + exp(a - l)) afterwards.
    """
    query, key, _, _, slopes, bias, options = case.arguments
    offset, softcap = options.get("query_offset", 0), options.get("softcap")
    reach = 0 if bias is None else bias.shape[1] // 2
    band = {"is_causal": False, "query_offset": 0, "window": None, "key_mask": None}
    support = support_of(query, key, **(band | support_options(options)))
    block_mask = None
    if support is not None:
        block_mask = create_block_mask(
            support.sees, support.batch, None, query.shape[-2], key.shape[-2], device=query.device
        )

    def change(score, b, h, i, j):
        distance = j - (i + offset)
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score - slopes[h] * distance.abs()
        if bias is not None:
            score = score + bias[h, distance.clamp(-reach, reach) + reach]
        return score

    def read(query: Tensor, key: Tensor, value: Tensor, sink_logit: Tensor | None, *more) -> Tensor:
        read, log_sum = flex_attention(
            *(query, key, value, change, block_mask, options.get("scale")),
            enable_gqa=query.shape[-3] != key.shape[-3],
            return_lse=True,
        )
        if sink_logit is None:
            return read
        share = torch.sigmoid(log_sum - sink_logit[:, None])
        return read * share.to(read.dtype)[..., None]

    return read


def slope_table(query: Tensor, key: Tensor, slopes: Tensor, options: dict) -> Tensor:
    """What ALiBi adds, (H, N, M) in the dtype of the query: minus infinity for hidden keys."""
    distance = distances(query, key, options.get("query_offset", 0)).to(query.dtype)
    support = band_support(query, key, **support_options(options))
    return torch.where(support, -slopes[:, None, None] * distance.abs(), -torch.inf)


def sdpa_read(backend, table: Tensor, options: dict, query, key, value, *more) -> Tensor:
    """scaled_dot_product_attention by one backend, with an additive table."""
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=table.expand(*query.shape[:-1], key.shape[-2]),
            scale=options.get("scale"),
            enable_gqa=query.shape[-3] != key.shape[-3],
        )


PROOF = Proof(
    name="scored_attention",
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
