"""Radial attention: in a video a query reads a window that halves as frames recede."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_count, check_scale
from attnlib.patterns.space_time import check_radial, power_below, radial
from attnlib.read.grid_checks import check_places
from attnlib.read.grid_tiles import PAIRS_AT_ONCE
from attnlib.read.heads import repeat_key_heads

QUERIES_OF_A_TILE = 32


def dense_radial_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads N D"],
    value: Float[Tensor, "*key_heads N E"],
    *,
    frames: int = 1,
    sink_frames: int = 1,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """The definition: `attend` over the keys of `radial`. Cost: time and memory N^2."""
    check_attention(query, key, value, enable_gqa)
    places = places_of_a_frame(query, key, frames, sink_frames)
    support = radial(frames, places, sink_frames)
    return attend(query, key, value, support=support, scale=scale, enable_gqa=enable_gqa)


def three_frames(query: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    """Three frames where the tokens can be cut so, for a trial."""
    return {"frames": 3 if query.shape[-2] % 3 == 0 else 1, "sink_frames": 0}


@mechanism(
    key="radial-attention",
    paper="radial-attention",
    chapter="8-vision/windows-and-neighbourhoods",
    section="frames-that-recede",
    step="support",
    idea="a window in space that halves each time the distance in time doubles",
    equation=r"S_{(i,k)} = \{(j,l) : |k-l| + 1 \le s / 2^{\lfloor \log_2 \max(|i-j|, 1) \rfloor}\}",
    cost="time N s log f (D + E) for f frames of s places, memory N (D + E)",
    oracle=dense_radial_attention,
    promises=Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        padding=False,
        shortest=1,
        arguments=three_frames,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def radial_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads N D"],
    value: Float[Tensor, "*key_heads N E"],
    *,
    frames: int = 1,
    sink_frames: int = 1,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention of a video over windows that halve as the distance in time doubles.

    .. math:: o_{(i,k)} = \sum_{(j,l) \in S_{(i,k)}} \frac{e^{s}}{\sum_{S_{(i,k)}} e^{s}} v_{(j,l)}

    The support is `attnlib.patterns.radial`, with `sink_frames` frames that all queries see.

    Shapes: N = frames * places, frame by frame. Cost: time (D + E) times the pairs in the tiles:
    32 queries of a frame read the stretch of each frame that they see together, about
    N (s + 32) log f for f frames of s places. Memory linear in N: one run of tiles at a time.

    `backend` as in `attnlib.backend`. The kernel is `masked_block_attention` over `tiled_support`,
    which the host makes once for each shape by asking about all N^2 pairs.
    Raises ValueError where frames does not divide N or there are more sinks than frames.
    Source: Li et al. (2025), section 4.2, eq. 6. Derived in chapter 8.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    places = places_of_a_frame(query, key, frames, sink_frames)

    if runs_kernel(backend, query.device, lambda: why_not_kernel(query, value)):
        from attnlib.kernels import masked_block_attention as kernel

        support = support_in_tiles(frames, places, sink_frames, query.device)
        rows = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        return kernel(*rows, support, scale=scale)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return read_stretches(query, key, value, frames, places, sink_frames, scale)


def read_stretches(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    frames: int,
    places: int,
    sink_frames: int,
    scale: float,
) -> Float[Tensor, "*heads N E"]:
    """A few queries of a frame at a time, with the stretches of all frames that they see."""
    dtype = torch.float32 if query.element_size() < 4 else query.dtype
    query_rows, key_rows, value_rows = (tokens_first(x.to(dtype)) for x in (query, key, value))
    tiles = -(-places // QUERIES_OF_A_TILE)
    first = torch.arange(tiles, device=query.device) * QUERIES_OF_A_TILE
    place = first[:, None] + torch.arange(QUERIES_OF_A_TILE, device=query.device)
    inside, place = place < places, place.clamp(max=places - 1)
    reads = []
    for frame in range(frames):
        keys, place_of_key, reach = stretches(first, frame, frames, places, sink_frames)
        at_once = PAIRS_AT_ONCE // (max(1, query_rows.shape[1]) * QUERIES_OF_A_TILE * keys.shape[1])
        for start in range(0, tiles, max(1, at_once)):
            run = slice(start, start + max(1, at_once))
            beside = (place[run, :, None].int() - place_of_key[run, None].int()).abs()
            read = F.scaled_dot_product_attention(
                gathered(query_rows, place[run] + frame * places),
                gathered(key_rows, keys[run]),
                gathered(value_rows, keys[run]),
                attn_mask=(beside <= reach[run, None].int())[:, None],
                scale=scale,
            )
            reads.append(read.transpose(1, 2)[inside[run]])
    read = torch.cat(reads).transpose(0, 1)
    return read.reshape(*query.shape[:-1], value.shape[-1]).to(query.dtype)


def tokens_first(tensor: Float[Tensor, "*heads N D"]) -> Float[Tensor, "N heads D"]:
    """A tensor with its tokens as the first axis and all heads in the second."""
    return tensor.reshape(-1, *tensor.shape[-2:]).transpose(0, 1).contiguous()


def gathered(
    table: Float[Tensor, "N heads D"], at: Int[Tensor, "tiles n"]
) -> Float[Tensor, "tiles heads n D"]:
    """The tokens of these numbers. An embedding: its backward pass is fast on a CPU too."""
    return F.embedding(at, table.flatten(1)).unflatten(-1, table.shape[1:]).transpose(1, 2)


def stretches(
    first: Int[Tensor, " tiles"], frame: int, frames: int, places: int, sink_frames: int
) -> tuple[Int[Tensor, "tiles n"], Int[Tensor, "tiles n"], Int[Tensor, "tiles n"]]:
    """The keys that some query of each tile of a frame sees, their places, and their reach.

    A query sees a key whose place is at most its reach away. Of each frame the keys of a tile are
    one stretch of places, so they are listed without a table of pairs. Shorter lists are filled up
    with keys that reach nobody.
    """
    others = torch.arange(frames, device=first.device)
    apart = (others - frame).abs()
    power = power_below(apart, frames)
    reach = (places // power).clamp(min=1) - 1  # a band of less than a place is the diagonal
    skipped = apart % ((power + places - 1) // places) != 0
    reach = reach.masked_fill(skipped, -1).masked_fill(others < sink_frames, places)
    last = (first + QUERIES_OF_A_TILE).clamp(max=places)[:, None]
    start = (first[:, None] - reach).clamp(min=0)
    stop = torch.where(reach < 0, start, (last + reach).clamp(max=places))

    total = (stop - start).cumsum(-1)
    entry = torch.arange(int(total[:, -1].max()), device=first.device).repeat(len(first), 1)
    owner = torch.searchsorted(total, entry, right=True).clamp(max=frames - 1)
    listed = entry < total[:, -1:]
    place = (stop - total).gather(1, owner) + entry  # stop - total is start less all before it
    place = torch.where(listed, place, 0)
    return owner * places + place, place, torch.where(listed, reach[owner], -1)


def places_of_a_frame(query: Tensor, key: Tensor, frames: int, sink_frames: int) -> int:
    """How many places each frame has, once the tokens are sure to be so many frames."""
    check_count("frames", frames, least=1)
    tokens = query.shape[-2]
    if tokens == 0 or tokens % frames:
        raise ValueError(f"frames must divide the {tokens} tokens of query, got {frames}")
    places = tokens // frames
    check_radial(frames, places, sink_frames)
    check_places(query, key, (frames, places))
    return places


@lru_cache(maxsize=8)
def support_in_tiles(frames: int, places: int, sink_frames: int, device: torch.device):
    """The radial support as tiles that are skipped, full or partial."""
    from attnlib.kernels import tiled_support

    return tiled_support(
        radial(frames, places, sink_frames),
        queries=frames * places,
        keys=frames * places,
        block_size=64,
        device=device,
    )


def why_not_kernel(query: Tensor, value: Tensor) -> str | None:
    """What of this call the kernel cannot do, or None."""
    return width_obstacle(query, value)
