"""Checked exercises of chapter 6.1 that ask for a program: a support, and lists of blocks."""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


# ---- 6.1.3 a support of near and global places


@checker("6.1.3")
def near_and_global(answer) -> str:
    """A predicate (b, h, i, j) -> bool: |i - j| < width, or i or j among the places."""
    for width, places, length in ((2, (0,), 6), (3, (1, 7), 9), (1, (), 4), (4, (3,), 12)):
        predicate = call(answer, width, places)
        require(
            callable(predicate),
            f"return a function of (b, h, i, j), got {type(predicate).__name__}",
        )
        i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        seen = call(predicate, zero, zero, i, j)
        require(
            isinstance(seen, Tensor) and seen.dtype == torch.bool,
            "the predicate must give a bool tensor: compare tensors, and join with | instead of or",
        )
        try:
            seen = torch.broadcast_to(seen, (1, 1, length, length))[0, 0]
        except RuntimeError:
            require(
                False,
                f"the predicate gives shape {tuple(seen.shape)}, which does not broadcast to "
                f"{(length, length)}",
            )
        _name_support(seen, width, places, length)
    return "One row and one column a global place: 2 N pairs each, beside the band."


def _name_support(seen: Tensor, width: int, places: tuple[int, ...], length: int) -> None:
    right = near_table(width, places, length)
    if torch.equal(seen, right):
        return
    i, j = (right ^ seen).nonzero()[0].tolist()
    where = f"width {width}, places {places}"
    for name, table in _wrong_tables(width, places, length).items():
        require(not torch.equal(seen, table), f"{where}: {name}")
    says = "sees" if seen[i, j] else "does not see"
    require(False, f"{where}: query {i} {says} key {j}")


def near_table(width: int, places: tuple[int, ...], length: int) -> Tensor:
    """The right support as a table."""
    band = _band(width, length)
    band[list(places)] = True
    band[:, list(places)] = True
    return band


def _band(width: int, length: int) -> Tensor:
    place = torch.arange(length)
    return (place[:, None] - place).abs() < width


def _wrong_tables(width: int, places: tuple[int, ...], length: int) -> dict[str, Tensor]:
    rows, columns, both = (_band(width, length) for _ in range(3))
    rows[list(places)] = True
    columns[:, list(places)] = True
    listed = torch.zeros(length, dtype=torch.bool)
    listed[list(places)] = True
    both |= listed & listed[:, None]
    right = near_table(width, places, length)
    return {
        "global places read everything, but nobody reads them: j may be global too": rows,
        "everybody reads the global places, but they do not read everything": columns,
        "i AND j must be global in yours; one of them is enough": both,
        "the band is one too wide: |i - j| < width": right | _band(width + 1, length),
        "this is causal; the support looks both ways": right.tril(),
        "the global places are missing": _band(width, length),
        "the band is one-sided: take the absolute value": right | _band(length, length).triu(),
    }


@solution("6.1.3")
def window_and_globals(width, places):
    def predicate(b, h, i, j):
        seen = (i - j).abs() < width
        for place in places:
            seen = seen | (i == place) | (j == place)
        return seen

    return predicate


@mutant("6.1.3", "nobody reads them")
def rows_only(width, places):
    def predicate(b, h, i, j):
        seen = (i - j).abs() < width
        for place in places:
            seen = seen | (i == place)
        return seen

    return predicate


@mutant("6.1.3", "do not read everything")
def columns_only(width, places):
    def predicate(b, h, i, j):
        seen = (i - j).abs() < width
        for place in places:
            seen = seen | (j == place)
        return seen

    return predicate


@mutant("6.1.3", "one of them is enough")
def both_global(width, places):
    def predicate(b, h, i, j):
        seen = (i - j).abs() < width
        for place in places:
            for other in places:
                seen = seen | (i == place) & (j == other)
        return seen

    return predicate


@mutant("6.1.3", "one too wide")
def width_included(width, places):
    return window_and_globals(width + 1, places)


@mutant("6.1.3", "take the absolute value")
def one_sided(width, places):
    def predicate(b, h, i, j):
        return window_and_globals(width, places)(b, h, i, j) | (i - j < width)

    return predicate


@mutant("6.1.3", "looks both ways")
def causal_too(width, places):
    return lambda b, h, i, j: window_and_globals(width, places)(b, h, i, j) & (j <= i)


@mutant("6.1.3", "instead of or")
def numbers_for_bools(width, places):
    return lambda b, h, i, j: window_and_globals(width, places)(b, h, i, j).long()


@mutant("6.1.3", "return a function")
def a_table(width, places):
    return near_table(width, places, 6)


# ---- 6.1.4 blocks that are listed


@checker("6.1.4")
def listed_blocks(answer) -> str:
    """Softmax attention over the listed key blocks of each query block, and no other product."""
    for size, count, taken in ((4, 3, 2), (8, 5, 1), (16, 4, 3)):
        length = size * count
        tensors = random(614, (length, 4), (length, 4), (length, 6))
        generator = torch.Generator().manual_seed(614)
        blocks = torch.rand(count, count, generator=generator).argsort(-1)[:, :taken]
        read = tensor_of(call(answer, *tensors, blocks, size), (length, 6), "the read")
        _name_block_read(read, *tensors, blocks, size)
    size, count, taken = 32, 16, 2
    tensors = random(615, *[(size * count, 8)] * 3)
    blocks = torch.rand(count, count, generator=torch.Generator().manual_seed(1)).argsort(-1)
    most = 2 * size * count * taken * size * (8 + 8)
    with FlopCounterMode(display=False) as counted:
        answer(*tensors, blocks[:, :taken], size)
    require(
        counted.get_total_flops() <= most,
        f"{counted.get_total_flops()} operations, expected at most {most}: a table of all queries "
        "and all keys is computed; gather the listed keys BEFORE the product",
    )
    return "The same read as with a mask, for the operations of the listed blocks alone."


def masked_blocks(query, key, value, blocks, size, scale=None) -> Tensor:
    """The right read by a mask."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    listed = torch.zeros(len(blocks), len(key) // size, dtype=torch.bool)
    listed[torch.arange(len(blocks))[:, None], blocks] = True
    seen = listed.repeat_interleave(size, 0).repeat_interleave(size, 1)
    return (query @ key.T * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ value


def _name_block_read(read, query, key, value, blocks, size) -> None:
    right = masked_blocks(query, key, value, blocks, size)
    if close(read, right):
        return
    where = f"{len(blocks)} blocks of {size}, {blocks.shape[1]} listed"
    require(read.isfinite().all(), f"{where}: the read holds NaN or infinity")
    full = (query @ key.T * query.shape[-1] ** -0.5).softmax(-1) @ value
    averaged = sum(
        masked_blocks(query, key, value, blocks[:, [t]], size) for t in range(blocks.shape[1])
    )
    turned = blocks.roll(1, 0)
    likely = {
        "all keys are read": full,
        "the scale 1 / sqrt(D) is missing": masked_blocks(query, key, value, blocks, size, 1.0),
        "one softmax a block, and the reads averaged: one softmax over all listed keys": averaged
        / blocks.shape[1],
        "one softmax a block, and the reads added: one softmax over all listed keys": averaged,
        "only the first listed block is read": masked_blocks(
            query, key, value, blocks[:, :1], size
        ),
        "a query block reads the list of the block before it": masked_blocks(
            query, key, value, turned, size
        ),
        "every query block reads the list of the first": masked_blocks(
            query, key, value, blocks[:1].expand_as(blocks), size
        ),
        "keys are gathered, values are not: the same places for both": gathered_reads(
            query,
            key,
            value,
            blocks,
            size,
            of_values=torch.zeros_like(blocks) + blocks.sort().values,
        ),
    }
    for name, other in likely.items():
        require(not close(read, other), f"{where}: {name}")
    require(False, f"{where}: wrong; compare with a mask that is true in the listed blocks")


def gathered_reads(query, key, value, blocks, size, of_values=None) -> Tensor:
    """The reads of gathered blocks, (N, E)."""
    of_values = blocks if of_values is None else of_values
    keys = key.view(-1, size, key.shape[1])[blocks].flatten(1, 2)
    values = value.view(-1, size, value.shape[1])[of_values].flatten(1, 2)
    scores = query.view(-1, size, query.shape[1]) @ keys.mT * query.shape[1] ** -0.5
    return (scores.softmax(-1) @ values).flatten(0, 1)


@solution("6.1.4")
def read_blocks(query, key, value, blocks, block_size):
    return gathered_reads(query, key, value, blocks, block_size)


@mutant("6.1.4", "BEFORE the product")
def a_mask(query, key, value, blocks, block_size):
    return masked_blocks(query, key, value, blocks, block_size)


@mutant("6.1.4", "all keys are read")
def no_list(query, key, value, blocks, block_size):
    return (query @ key.T * query.shape[-1] ** -0.5).softmax(-1) @ value


@mutant("6.1.4", "the scale")
def no_scale(query, key, value, blocks, block_size):
    return gathered_reads(query * query.shape[-1] ** 0.5, key, value, blocks, block_size)


@mutant("6.1.4", "the reads averaged")
def averaged_blocks(query, key, value, blocks, block_size):
    parts = [gathered_reads(query, key, value, one[:, None], block_size) for one in blocks.T]
    return sum(parts) / len(parts)


@mutant("6.1.4", "only the first listed block")
def first_block(query, key, value, blocks, block_size):
    return gathered_reads(query, key, value, blocks[:, :1], block_size)


@mutant("6.1.4", "the list of the block before")
def lists_shifted(query, key, value, blocks, block_size):
    return gathered_reads(query, key, value, blocks.roll(1, 0), block_size)


@mutant("6.1.4", "reads the list of the first")
def one_list(query, key, value, blocks, block_size):
    return gathered_reads(query, key, value, blocks[:1].expand_as(blocks), block_size)


@mutant("6.1.4", "values are not")
def values_in_order(query, key, value, blocks, block_size):
    return gathered_reads(query, key, value, blocks, block_size, blocks.sort().values)


@mutant("6.1.4", "must have shape")
def left_in_blocks(query, key, value, blocks, block_size):
    return gathered_reads(query, key, value, blocks, block_size).view(-1, block_size, 6)
