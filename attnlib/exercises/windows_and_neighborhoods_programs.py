"""Checked exercises of chapter 8.1 that ask for a program; those that gather stand apart."""

import math

import torch
from torch import Tensor

from attnlib.exercises.answers import call, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.exercises.windows_and_neighborhoods_gathers import (
    both_axes,
    compare,
    coordinates,
    inputs,
    reads,
)

# ---- 8.1.3 where a window begins


@checker("8.1.3")
def where_windows_begin(answer) -> str:
    """The first key of each query: the window of its group's leader, moved inside the line."""
    for length, window, stride in ((10, 5, 1), (9, 4, 1), (12, 4, 4), (13, 6, 3), (7, 7, 2)):
        given = call(answer, length, window, stride)
        try:
            given = torch.as_tensor(given).flatten().tolist()
        except (TypeError, ValueError, RuntimeError):
            require(False, f"return one number a query, got {type(given).__name__}")
        where = f"length {length}, window {window}, stride {stride}"
        require(len(given) == length, f"{where}: {len(given)} numbers for {length} queries")
        _name_firsts(given, length, window, stride, where)
    return "The window of each group lies inside the line, for odd and even windows and strides."


def _name_firsts(given: list, length: int, window: int, stride: int, where: str) -> None:
    if given == firsts(length, window, stride):
        return
    require(min(given) >= 0, f"{where}: a window begins at {min(given)}, before the first key")
    require(
        max(given) <= length - window,
        f"{where}: the window that begins at {max(given)} runs past the end; the last one begins "
        f"at {length - window}",
    )
    likely = {
        "the stride is not used: the queries of a group share the window of their leader": firsts(
            length, window, 1
        ),
        "the leader is the first of its group; take the one at stride // 2": firsts(
            length, window, stride, leader=0
        ),
        "the leader is the last of its group; take the one at stride // 2": firsts(
            length, window, stride, leader=stride - 1
        ),
        "an even window reaches one further back than ahead: begin at leader - window // 2": firsts(
            length, window, stride, back=(window - 1) // 2
        ),
        "the window begins at its leader; the leader stands in its middle": firsts(
            length, window, stride, back=0
        ),
        "the window ends at its leader; the leader stands in its middle": firsts(
            length, window, stride, back=window - 1
        ),
    }
    for message, wrong in likely.items():
        require(given != wrong, f"{where}: {message}")
    place = next(i for i, first in enumerate(firsts(length, window, stride)) if first != given[i])
    wanted = firsts(length, window, stride)[place]
    require(False, f"{where}: query {place} begins at {given[place]}, expected {wanted}")


def firsts(length, window, stride, leader=None, back=None) -> list[int]:
    """The first keys, and the ways in which they go wrong."""
    leader = stride // 2 if leader is None else leader
    back = window // 2 if back is None else back
    leaders = [min(i // stride * stride + leader, length - 1) for i in range(length)]
    return [min(max(place - back, 0), length - window) for place in leaders]


@solution("8.1.3")
def first_keys(length, window, stride):
    place = torch.arange(length)
    leader = (place // stride * stride + stride // 2).clamp(max=length - 1)
    return (leader - window // 2).clamp(0, length - window)


@mutant("8.1.3", "before the first key")
def not_clamped(length, window, stride):
    return [i // stride * stride + stride // 2 - window // 2 for i in range(length)]


@mutant("8.1.3", "runs past the end")
def clamped_to_the_line(length, window, stride):
    return [min(max(i - window // 2, 0), length - 1) for i in range(length)]


@mutant("8.1.3", "the stride is not used")
def without_stride(length, window, stride):
    return firsts(length, window, 1)


@mutant("8.1.3", "the first of its group")
def first_leads(length, window, stride):
    return firsts(length, window, stride, leader=0)


@mutant("8.1.3", "the last of its group")
def last_leads(length, window, stride):
    return firsts(length, window, stride, leader=stride - 1)


@mutant("8.1.3", "one further back than ahead")
def even_windows_ahead(length, window, stride):
    return firsts(length, window, stride, back=(window - 1) // 2)


@mutant("8.1.3", "begins at its leader")
def leader_first(length, window, stride):
    return firsts(length, window, stride, back=0)


@mutant("8.1.3", "9 numbers for 10 queries")
def one_short(length, window, stride):
    return firsts(length, window, stride)[:-1]


# ---- 8.1.4 windows that shift


@checker("8.1.4")
def windows_that_shift(answer) -> str:
    """Softmax attention in shifted windows, where nothing wraps around."""
    for grid, window, shift in (((4, 8), 4, 0), ((6, 4), 2, 1), ((8, 12), 4, 2), ((6, 9), 3, 2)):
        tensors = inputs(814, grid)
        read = call(answer, *tensors, grid, window, shift)
        read = tensor_of(read, (2, math.prod(grid), 3), "the read")
        right = reads(*tensors, window_table(grid, window, shift))
        where = f"grid {grid}, window {window}, shift {shift}"
        compare(read, right, _wrong_shifts(tensors, grid, window, shift), where)
    return "Equal to attention over the blocks, with and without a shift."


def window_table(grid, window, shift, wraps=False, turned=False) -> Tensor:
    """Who is in one window with whom."""
    tables = []
    for length in grid:
        place = torch.arange(length)
        block = (place + window - shift) // window
        if turned:
            block = (place + shift) // window
        if wraps:
            block = block % (length // window)
        tables.append(block[:, None] == block)
    return both_axes(*tables)


def _wrong_shifts(tensors, grid, window, shift) -> dict[str, Tensor]:
    right = reads(*tensors, window_table(grid, window, shift))
    image = right.unflatten(-2, grid)
    rows = window_table((grid[0], window), window, shift)
    rows = rows.view(grid[0], window, grid[0], window)[:, 0, :, 0]
    unmoved = (torch.arange(grid[1])[:, None] // window) == torch.arange(grid[1]) // window
    in_windows = image.unflatten(-3, (-1, window)).unflatten(-2, (-1, window)).transpose(-4, -3)
    return {
        "the windows are not shifted": reads(*tensors, window_table(grid, window, 0)),
        "a window wraps around: after the roll, hide places from each other that were far apart": (
            reads(*tensors, window_table(grid, window, shift, wraps=True))
        ),
        "shifted the wrong way: blocks begin at shift, so roll by -shift": reads(
            *tensors, window_table(grid, window, shift, turned=True)
        ),
        "the reads are still rolled: roll them back": image.roll(
            (-shift, -shift), (-3, -2)
        ).flatten(-3, -2),
        "only the rows are shifted": reads(*tensors, both_axes(rows, unmoved)),
        "the reads come back window by window: bring them into the order of the places": (
            in_windows.flatten(-5, -2)
        ),
        "the scale 1 / sqrt(D) is missing": reads(
            *tensors, window_table(grid, window, shift), scale=False
        ),
    }


def cut(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """(..., N, D) -> (..., windows, places of a window, D)."""
    image = x.unflatten(-2, grid).unflatten(-3, (-1, window)).unflatten(-2, (-1, window))
    return image.transpose(-4, -3).flatten(-5, -4).flatten(-3, -2)


def join(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """The way back."""
    image = x.unflatten(-3, (-1, grid[1] // window)).unflatten(-2, (window, window))
    return image.transpose(-4, -3).flatten(-5, -4).flatten(-3, -2).flatten(-3, -2)


def roll(x: Tensor, grid: tuple[int, int], shift: int) -> Tensor:
    """Move the places of a grid by `shift` down and to the right, around the border."""
    return x.unflatten(-2, grid).roll((shift, shift), (-3, -2)).flatten(-3, -2)


def rolled_windows(query, key, value, grid, window, shift, *, masked=True, back=True, way=-1):
    """Roll, cut, attend, join, roll back; and what happens if a part is forgotten."""
    part = [cut(roll(x, grid, way * shift), grid, window) for x in (query, key, value)]
    places = coordinates(grid)
    side = (places < shift).double()  # what the roll brings to the other end
    side = cut(roll(side, grid, way * shift), grid, window)
    seen = (side[..., :, None, :] == side[..., None, :, :]).all(-1)
    read = reads(*part, seen if masked else torch.ones_like(seen))
    return roll(join(read, grid, window), grid, -way * shift if back else 0)


@solution("8.1.4")
def shifted_windows(query, key, value, grid, window, shift):
    return rolled_windows(query, key, value, grid, window, shift)


@mutant("8.1.4", "wraps around")
def without_mask(query, key, value, grid, window, shift):
    return rolled_windows(query, key, value, grid, window, shift, masked=False)


@mutant("8.1.4", "roll them back")
def not_rolled_back(query, key, value, grid, window, shift):
    return rolled_windows(query, key, value, grid, window, shift, back=False)


@mutant("8.1.4", "the windows are not shifted")
def never_shifted(query, key, value, grid, window, shift):
    return rolled_windows(query, key, value, grid, window, 0)


@mutant("8.1.4", "shifted the wrong way")
def wrong_way(query, key, value, grid, window, shift):
    return reads(query, key, value, window_table(grid, window, shift, turned=True))


@mutant("8.1.4", "only the rows are shifted")
def rows_alone(query, key, value, grid, window, shift):
    row, column = coordinates(grid).unbind(-1)
    block = torch.stack(((row + window - shift) // window, column // window))
    return reads(query, key, value, (block[:, :, None] == block[:, None, :]).all(0))


@mutant("8.1.4", "window by window")
def in_the_order_of_windows(query, key, value, grid, window, shift):
    part = [cut(x, grid, window) for x in (query, key, value)]
    return reads(*part, True).flatten(-3, -2)


@mutant("8.1.4", "the scale")
def windows_without_scale(query, key, value, grid, window, shift):
    return rolled_windows(2 * query, key, value, grid, window, shift)
