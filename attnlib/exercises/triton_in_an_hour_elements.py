"""The puzzles of chapter K.1 on addresses: one program, a grid, two axes.

Each has one kernel; its mutants are the same kernel with `wrong` set. Needs Triton.
"""

import triton
import triton.language as tl

from attnlib.exercises.answers import compared, require
from attnlib.exercises.kernel_trials import Case, Changed, numbers, result_of
from attnlib.exercises.registry import checker, mutant, solution

# ---- K.1.1 one program turns a vector around


@checker("K.1.1")
def turned_around(answer) -> str:
    """out[count - 1 - i] = x[i], one program, for counts that fill the block and that do not."""
    for count, block_size in ((13, 16), (16, 16), (1, 4)):
        x = numbers(count, count)
        case = Case(
            (x,),
            (count,),
            lambda given, out, count=count: (given[0], out, count),
            (1,),
            {"block_size": block_size},
        )
        compared(
            result_of(answer, case),
            x.flip(0),
            ((x, "this is x in order: element i goes to the place count - 1 - i"),),
            "right places, wrong numbers: element i goes to the place count - 1 - i",
        )
    return "Turned around for lengths 13, 16 and 1, and nothing beside the tensors was touched."


@solution("K.1.1")
@triton.jit
def reverse(x_ptr, out_ptr, count, block_size: tl.constexpr, wrong: tl.constexpr = ""):
    elements = tl.arange(0, block_size)
    inside = elements < count
    places = count - 1 - elements
    if wrong == "no mask":
        inside = elements < block_size
    if wrong == "one too far":
        places = count - elements
    if wrong == "not turned":
        places = elements
    if wrong == "one too few":
        inside = elements < count - 1
    x = tl.load(x_ptr + elements, mask=inside)
    if wrong == "doubled":
        x = 2 * x
    tl.store(out_ptr + places, x, mask=inside)


for _wrong, _says in (
    ("no mask", "writes before the beginning"),
    ("one too far", "writes past the end"),
    ("not turned", "x in order"),
    ("one too few", "was never written"),
    ("doubled", "wrong numbers"),
):
    mutant("K.1.1", _says, _wrong)(Changed(reverse, wrong=_wrong))

# ---- K.1.2 many programs, a block each


@checker("K.1.2")
def scaled_in_blocks(answer) -> str:
    """out = factor x; program p has the elements p B to p B + B - 1."""
    for count, block_size in ((37, 8), (32, 8), (3, 8)):
        x = numbers(count, count)
        case = Case(
            (x,),
            (count,),
            lambda given, out, count=count: (given[0], out, count, 3.0),
            (triton.cdiv(count, block_size),),
            {"block_size": block_size},
        )
        compared(
            result_of(answer, case),
            3 * x,
            ((x, "the factor is missing"), (x + 3, "the factor is added, it should multiply")),
            "every element was written, with wrong numbers: is the load at the same place?",
        )
    return "Right for 37, 32 and 3 numbers in blocks of 8, and each program has its own block."


@solution("K.1.2")
@triton.jit
def scale(x_ptr, out_ptr, count, factor, block_size: tl.constexpr, wrong: tl.constexpr = ""):
    elements = tl.program_id(0) * block_size + tl.arange(0, block_size)
    if wrong == "no program":
        elements = tl.arange(0, block_size)
    if wrong == "overlap":
        elements = tl.program_id(0) + tl.arange(0, block_size)
    inside = elements < count
    if wrong == "no mask":
        inside = elements >= 0
    if wrong == "one too far":
        inside = elements <= count
    x = tl.load(x_ptr + elements, mask=inside)
    if wrong == "first block again":
        x = tl.load(x_ptr + tl.arange(0, block_size), mask=inside)
    result = factor * x
    if wrong == "no factor":
        result = x
    if wrong == "added":
        result = x + factor
    tl.store(out_ptr + elements, result, mask=inside)


for _wrong, _says in (
    ("no program", "program 1 writes where program 0 wrote"),
    ("overlap", "their blocks overlap"),
    ("no mask", "writes past the end"),
    ("one too far", "writes past the end"),
    ("first block again", "is the load at the same place"),
    ("no factor", "the factor is missing"),
    ("added", "it should multiply"),
):
    mutant("K.1.2", _says, _wrong)(Changed(scale, wrong=_wrong))

# ---- K.1.3 a matrix is transposed, with the steps of both tensors


@checker("K.1.3")
def transposed(answer) -> str:
    """out[j, i] = x[i, j] for any steps, square and ragged."""
    for rows, columns, turned in ((11, 11, False), (21, 5, False), (6, 19, False), (21, 5, True)):
        x = numbers(rows, columns, rows) if turned else numbers(rows, rows, columns)

        def arguments(given, out, turned=turned):
            view = given[0].mT if turned else given[0]
            return (view, out, *view.shape, *view.stride(), *out.stride())

        shape = tuple(x.shape) if turned else (columns, rows)
        case = Case(
            (x,),
            shape,
            arguments,
            (triton.cdiv(rows, 8), triton.cdiv(columns, 8)),
            {"block_size": 8},
            gapped=(0,),
            out_gap=True,
        )
        result = result_of(answer, case)
        right = x if turned else x.mT
        swapped = right.shape == right.mT.shape
        likely = ((right.mT, "rows and columns are swapped: this is x itself"),) if swapped else ()
        compared(result, right, likely, "every element was written, with wrong numbers")
    return "Right for square and ragged matrices, for rows with gaps and for a transposed view."


@solution("K.1.3")
@triton.jit
def transpose(
    x_ptr,
    out_ptr,
    rows,
    columns,
    x_row_step,
    x_column_step,
    out_row_step,
    out_column_step,
    block_size: tl.constexpr,
    wrong: tl.constexpr = "",
):
    i = tl.program_id(0) * block_size + tl.arange(0, block_size)[:, None]
    j = tl.program_id(1) * block_size + tl.arange(0, block_size)[None, :]
    if wrong == "programs swapped":
        i = tl.program_id(1) * block_size + tl.arange(0, block_size)[:, None]
        j = tl.program_id(0) * block_size + tl.arange(0, block_size)[None, :]
    inside = (i < rows) & (j < columns)
    if wrong == "rows only":
        inside = (i < rows) & (j >= 0)
    if wrong == "columns only":
        inside = (i >= 0) & (j < columns)
    if wrong == "mask swapped":
        inside = (i < columns) & (j < rows)
    places = i * x_row_step + j * x_column_step
    if wrong == "no steps":
        places = i * columns + j
    x = tl.load(x_ptr + places, mask=inside)
    out_places = j * out_row_step + i * out_column_step
    if wrong == "copied":
        out_places = i * out_row_step + j * out_column_step
    if wrong == "steps of x":
        out_places = j * x_row_step + i * x_column_step
    tl.store(out_ptr + out_places, x, mask=inside)


for _wrong, _says in (
    ("copied", "rows and columns are swapped"),
    ("rows only", "writes past the end"),
    ("columns only", "writes into the gap behind a row"),
    ("programs swapped", "was never written"),
    ("mask swapped", "writes past the end"),
    ("no steps", "numbers that lie beside"),
    ("steps of x", "writes into the gap behind a row"),
):
    mutant("K.1.3", _says, _wrong)(Changed(transpose, wrong=_wrong))

# ---- K.1.4 the largest number of each row


@checker("K.1.4")
def largest_of_rows(answer) -> str:
    """out[i] = max_j x[i, j], a block of rows for each program, all columns at once."""
    for rows, columns, shift in ((7, 7, 0.0), (7, 7, -50.0), (19, 6, 0.0), (3, 8, 0.0)):
        x = numbers(rows + columns, rows, columns) + shift
        case = Case(
            (x,),
            (rows,),
            lambda given, out: (given[0], out, *given[0].shape, given[0].stride(0)),
            (triton.cdiv(rows, 8),),
            {"block_rows": 8, "block_columns": 8},
            gapped=(0,),
        )
        result = result_of(answer, case)
        right = x.amax(1)
        if shift:
            require(
                not bool((result == 0).all()),
                "a row of negative numbers has the maximum 0: that is the padding; load with "
                "other=-float('inf')",
            )
        likely = [(x.sum(1), "these are sums, not maxima")]
        if rows == columns:
            likely.append((x.amax(0), "the maximum was taken over the wrong axis: one a column"))
        likely.append((right.clamp(min=0), "padding of 0 wins over negative numbers: other=-inf"))
        compared(result, right, likely, "right places, wrong numbers")
    return "Right for ragged rows and columns and for rows of negative numbers."


@solution("K.1.4")
@triton.jit
def row_max(
    x_ptr,
    out_ptr,
    rows,
    columns,
    row_step,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    wrong: tl.constexpr = "",
):
    i = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    j = tl.arange(0, block_columns)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    padding = -float("inf")
    if wrong == "padding 0":
        padding = 0.0
    if wrong == "columns not masked":
        inside = (i < rows)[:, None] & (j >= 0)[None, :]
    x = tl.load(x_ptr + i[:, None] * row_step + j[None, :], mask=inside, other=padding)
    if wrong == "wrong axis":
        largest = tl.max(x, 0)
    elif wrong == "sum":
        largest = tl.sum(tl.where(inside, x, 0.0), 1)
    else:
        largest = tl.max(x, 1)
    store = i < rows
    if wrong == "rows not masked":
        store = i >= 0
    if wrong == "first program only":
        i = tl.arange(0, block_rows)
        store = i < rows
    tl.store(out_ptr + i, largest, mask=store)


for _wrong, _says in (
    ("padding 0", "that is the padding"),
    ("columns not masked", "numbers that lie beside"),
    ("wrong axis", "over the wrong axis"),
    ("sum", "sums, not maxima"),
    ("rows not masked", "writes past the end"),
    ("first program only", "program 1 writes where program 0 wrote"),
):
    mutant("K.1.4", _says, _wrong)(Changed(row_max, wrong=_wrong))
