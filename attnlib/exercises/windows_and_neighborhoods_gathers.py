"""Exercises of chapter 8.1 that gather what is near: halos and neighborhoods without a table."""

import math

import torch
from torch import Tensor

from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution

# ---- what all programs of the chapter share


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


def inputs(seed: int, grid: tuple[int, int]) -> list[Tensor]:
    """query, key (2, N, 4) and value (2, N, 3) of the places of a grid."""
    places = math.prod(grid)
    return random(seed, (2, places, 4), (2, places, 4), (2, places, 3))


def coordinates(grid: tuple[int, int]) -> Tensor:
    """Row and column of each place."""
    return torch.cartesian_prod(*(torch.arange(length) for length in grid)).view(-1, 2)


def both_axes(rows: Tensor, columns: Tensor) -> Tensor:
    """What is seen on a grid if both axes see: tables (length, length) -> (N, N)."""
    return torch.kron(rows.int(), columns.int()).bool()


def reads(query, key, value, seen, zeros=0.0, scale=True) -> Tensor:
    """Softmax attention over a table; `zeros` counts keys with score zero and value zero."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale else 1.0)
    powers = scores.exp() * seen
    return powers @ value / (powers.sum(-1, keepdim=True) + zeros)


def compare(read: Tensor, right: Tensor, likely: dict[str, Tensor], where: str) -> None:
    """Refuse a read that is not right, with the words of the likely mistake that it equals."""
    if close(read, right):
        return
    require(read.isfinite().all(), f"{where}: the read is not finite; is a row without keys?")
    for message, wrong in likely.items():
        require(close(right, wrong) or not close(read, wrong), f"{where}: {message}")
    off = (read - right).abs().amax(dim=(0, -1)) > 1e-6
    require(
        False,
        f"{where}: {int(off.sum())} of {len(off)} places are wrong, the first of them is place "
        f"{int(off.nonzero()[0])}",
    )


def without_a_table(answer, tensors: list[Tensor], *further) -> None:
    """Refuse a program that makes a tensor of all pairs of places."""
    places = tensors[0].shape[-2]
    largest = largest_tensor(lambda: answer(*tensors, *further))
    require(
        largest < places**2,
        f"the largest tensor has {largest} elements for {places} places: a table of all pairs is "
        "what the program should do without; gather the keys that are needed",
    )


# ---- 8.1.5 blocks with a halo


@checker("8.1.5")
def blocks_with_a_halo(answer) -> str:
    """Each block of queries reads its own keys and those around it that lie on the grid."""
    for grid, block, halo in (((6, 8), 2, 1), ((4, 4), 4, 1), ((9, 6), 3, 2), ((4, 6), 2, 0)):
        tensors = inputs(815, grid)
        read = tensor_of(call(answer, *tensors, grid, block, halo), tuple(tensors[2].shape))
        right = reads(*tensors, halo_table(grid, block, halo))
        where = f"grid {grid}, block {block}, halo {halo}"
        compare(read, right, _wrong_halos(tensors, grid, block, halo), where)
    without_a_table(answer, [x[:1] for x in inputs(815, (24, 24))], (24, 24), 4, 1)
    return "Equal to attention over blocks with a halo, without a table of all pairs."


def halo_table(grid, block, halo, after=None) -> Tensor:
    """Who sees whom: `halo` places before the own block, and `after` behind it."""
    after = halo if after is None else after
    tables = []
    for length in grid:
        place = torch.arange(length)
        start = (place // block * block)[:, None]
        tables.append((place >= start - halo) & (place < start + block + after))
    return both_axes(*tables)


def _wrong_halos(tensors, grid, block, halo) -> dict[str, Tensor]:
    seen = halo_table(grid, block, halo)
    missing = (block + 2 * halo) ** 2 - seen.sum(-1, keepdim=True)
    around = coordinates(grid)
    near = (around[:, None] - around).abs().amax(-1) <= halo
    row_first = both_axes(
        halo_table((grid[0], block), block, halo).view(grid[0], block, grid[0], block)[:, 0, :, 0],
        torch.arange(grid[1])[:, None] // block == torch.arange(grid[1]) // block,
    )
    return {
        "zeros outside the image enter the softmax as keys; mask them": reads(
            *tensors, seen, zeros=missing
        ),
        "there is no halo: queries see their own block alone": reads(
            *tensors, halo_table(grid, block, 0)
        ),
        "the halo lies on one side alone; it surrounds the block": reads(
            *tensors, halo_table(grid, block, halo, after=0)
        ),
        "keys outside the image are replaced by the nearest ones, which then count twice": (
            gather_halos(*tensors, grid, block, halo, outside="nearest")
        ),
        "the halo is that of the query; all queries of a block share the keys around it": reads(
            *tensors, near
        ),
        "the halo reaches up and down alone": reads(*tensors, row_first),
        "the reads come back block by block: bring them into the order of the places": (
            gather_halos(*tensors, grid, block, halo, order="blocks")
        ),
        "the scale 1 / sqrt(D) is missing": reads(*tensors, seen, scale=False),
    }


def gather_halos(query, key, value, grid, block, halo, *, outside="hidden", order="places"):
    """Gather the keys of each block and attend, and the ways in which that goes wrong."""
    rows, columns = grid
    starts = coordinates((rows // block, columns // block)) * block
    inner = coordinates((block, block))
    outer = coordinates((block + 2 * halo, block + 2 * halo)) - halo
    own = starts[:, None] + inner
    around = starts[:, None] + outer
    size = torch.tensor(grid)
    inside = ((around >= 0) & (around < size)).all(-1)
    place = own @ torch.tensor([columns, 1])
    keys = around.clamp(min=torch.zeros_like(size), max=size - 1) @ torch.tensor([columns, 1])
    seen = inside[:, None] if outside == "hidden" else torch.ones_like(inside)[:, None]
    read = reads(query[..., place, :], key[..., keys, :], value[..., keys, :], seen)
    if order == "blocks":
        return read.flatten(-3, -2)
    return torch.zeros_like(value).index_copy(-2, place.flatten(), read.flatten(-3, -2))


@solution("8.1.5")
def halo_attention(query, key, value, grid, block, halo):
    return gather_halos(query, key, value, grid, block, halo)


@mutant("8.1.5", "enter the softmax as keys")
def padded_with_zeros(query, key, value, grid, block, halo):
    seen = halo_table(grid, block, halo)
    missing = (block + 2 * halo) ** 2 - seen.sum(-1, keepdim=True)
    return reads(query, key, value, seen, zeros=missing)


@mutant("8.1.5", "their own block alone")
def no_halo(query, key, value, grid, block, halo):
    return gather_halos(query, key, value, grid, block, 0)


@mutant("8.1.5", "on one side alone")
def half_a_halo(query, key, value, grid, block, halo):
    return reads(query, key, value, halo_table(grid, block, halo, after=0))


@mutant("8.1.5", "which then count twice")
def nearest_keys(query, key, value, grid, block, halo):
    return gather_halos(query, key, value, grid, block, halo, outside="nearest")


@mutant("8.1.5", "all queries of a block share")
def halo_of_the_query(query, key, value, grid, block, halo):
    place = coordinates(grid)
    return reads(query, key, value, (place[:, None] - place).abs().amax(-1) <= halo)


@mutant("8.1.5", "block by block")
def block_after_block(query, key, value, grid, block, halo):
    return gather_halos(query, key, value, grid, block, halo, order="blocks")


@mutant("8.1.5", "the scale")
def halos_without_scale(query, key, value, grid, block, halo):
    return gather_halos(2 * query, key, value, grid, block, halo)


@mutant("8.1.5", "a table of all pairs")
def masked_table(query, key, value, grid, block, halo):
    return reads(query, key, value, halo_table(grid, block, halo))


# ---- 8.1.6 a window for each place


@checker("8.1.6")
def window_for_each_place(answer) -> str:
    """W x W keys for every query of a grid, every `dilation`-th place, moved inside at borders."""
    for grid, window, dilation in (((5, 7), 3, 1), ((8, 6), 4, 1), ((9, 7), 3, 2), ((6, 9), 2, 3)):
        tensors = inputs(816, grid)
        read = call(answer, *tensors, grid, window, dilation)
        read = tensor_of(read, tuple(tensors[2].shape))
        right = reads(*tensors, near_table(grid, window, dilation))
        where = f"grid {grid}, window {window}, dilation {dilation}"
        compare(read, right, _wrong_neighborhoods(tensors, grid, window, dilation), where)
    without_a_table(answer, [x[:1] for x in inputs(816, (24, 24))], (24, 24), 3, 2)
    return "Equal to attention over dilated neighborhoods, without a table of all pairs."


def near_keys(length: int, window: int, dilation: int) -> Tensor:
    """The keys of each query on one axis (length, window): the window of its dilation class."""
    place = torch.arange(length)
    rest, number = place % dilation, place // dilation
    members = (length - rest + dilation - 1) // dilation
    first = (number - window // 2).clamp(min=0).minimum(members - window)
    return (first[:, None] + torch.arange(window)) * dilation + rest[:, None]


def near_table(grid, window, dilation, keys=near_keys) -> Tensor:
    """Who sees whom."""
    tables = []
    for length in grid:
        near = keys(length, window, dilation)
        inside = (near >= 0) & (near < length)
        rows = torch.arange(length)[:, None].expand_as(near)
        table = torch.zeros(length, length, dtype=torch.bool)
        table[rows[inside], near[inside]] = True
        tables.append(table)
    return both_axes(*tables)


def _unmoved(length: int, window: int, dilation: int) -> Tensor:
    steps = (torch.arange(window) - window // 2) * dilation
    return torch.arange(length)[:, None] + steps


def _moved_as_one(length: int, window: int, dilation: int) -> Tensor:
    """Moved inside, but out of its class: the first key is clamped as if nothing were skipped."""
    first = torch.arange(length) - window // 2 * dilation
    first = first.clamp(0, length - (window - 1) * dilation - 1)
    return first[:, None] + torch.arange(window) * dilation


def _around(length: int, window: int, dilation: int) -> Tensor:
    return _unmoved(length, window, dilation) % length


def _ahead(length: int, window: int, dilation: int) -> Tensor:
    place = torch.arange(length)
    rest, number = place % dilation, place // dilation
    members = (length - rest + dilation - 1) // dilation
    first = (number - (window - 1) // 2).clamp(min=0).minimum(members - window)
    return (first[:, None] + torch.arange(window)) * dilation + rest[:, None]


def _wrong_neighborhoods(tensors, grid, window, dilation) -> dict[str, Tensor]:
    cut = near_table(grid, window, dilation, _unmoved)
    missing = window**2 - cut.sum(-1, keepdim=True)
    others = {
        "the window is cut at the border; move it until it lies inside": _unmoved,
        "the window wraps around to the other side of the image": _around,
        "at a border the window leaves its class: move it by whole steps of the dilation": (
            _moved_as_one
        ),
        "an even window reaches one further back than ahead": _ahead,
    }
    wrong = {
        message: reads(*tensors, near_table(grid, window, dilation, keys))
        for message, keys in others.items()
    }
    wrong["the dilation is not used"] = reads(*tensors, near_table(grid, window, 1))
    wrong["zeros outside the image enter the softmax as keys"] = reads(*tensors, cut, zeros=missing)
    if grid[0] >= window * dilation and grid[1] >= window * dilation:
        swapped = near_table(grid[::-1], window, dilation)
        wrong["rows and columns of the grid are exchanged"] = reads(*tensors, swapped)
    wrong["the scale 1 / sqrt(D) is missing"] = reads(
        *tensors, near_table(grid, window, dilation), scale=False
    )
    return wrong


@solution("8.1.6")
def neighborhood(query, key, value, grid, window, dilation):
    """Gather the keys of each place: rows times columns of its two windows."""
    rows, columns = (near_keys(length, window, dilation) for length in grid)
    keys = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]
    keys = keys.reshape(len(rows) * len(columns), -1)
    read = reads(query[..., None, :], key[..., keys, :], value[..., keys, :], True)
    return read[..., 0, :]


def with_keys(keys):
    """The neighborhood whose windows are `keys`."""

    def attention(query, key, value, grid, window, dilation):
        return reads(query, key, value, near_table(grid, window, dilation, keys))

    return attention


mutant("8.1.6", "move it until it lies inside", "cut at the border")(with_keys(_unmoved))
mutant("8.1.6", "wraps around", "around the border")(with_keys(_around))
mutant("8.1.6", "leaves its class", "clamped without classes")(with_keys(_moved_as_one))
mutant("8.1.6", "one further back", "even window ahead")(with_keys(_ahead))
mutant("8.1.6", "a table of all pairs", "dense")(with_keys(near_keys))


@mutant("8.1.6", "the dilation is not used")
def never_dilated(query, key, value, grid, window, dilation):
    return neighborhood(query, key, value, grid, window, 1)


@mutant("8.1.6", "enter the softmax as keys")
def zeros_as_keys(query, key, value, grid, window, dilation):
    seen = near_table(grid, window, dilation, _unmoved)
    return reads(query, key, value, seen, zeros=window**2 - seen.sum(-1, keepdim=True))


@mutant("8.1.6", "are exchanged")
def columns_first(query, key, value, grid, window, dilation):
    return neighborhood(query, key, value, grid[::-1], window, dilation)


@mutant("8.1.6", "the scale")
def neighborhoods_without_scale(query, key, value, grid, window, dilation):
    return neighborhood(2 * query, key, value, grid, window, dilation)
