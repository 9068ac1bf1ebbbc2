"""Launching a student's Triton kernel between guard zones, and saying what it did wrong.

Each tensor lies inside a larger buffer. Around an output the buffer holds a number that no kernel
writes, so a write beside the tensor shows. Around an input it holds NaN in a first run and a large
number in a second: a result that is NaN, or that differs, was made from numbers beside the tensor.
The guard zones are wide, so that a wrong address lands in them and not in foreign memory. Kernels
that are compiled run on the GPU, interpreted ones on the CPU.
"""

import ast
import inspect
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from attnlib.exercises.answers import require
from attnlib.exercises.registry import ExerciseError
from attnlib.kernels.launch import interpreted

GUARD = 2**15  # numbers before and after each tensor
GAP = 3  # numbers behind each row of a matrix that does not fill its memory
UNTOUCHED = 7777.25  # around an output
UNWRITTEN = 5555.5  # in an output before the launch
BESIDE = (float("nan"), 3000.0)  # around an input, in the first and in the second run


@dataclass(frozen=True)
class Case:
    """One launch: tensors, the output's shape and dtype, and the call `kernel[grid](*arguments)`.

    `arguments` makes them from the guarded inputs and the guarded output. The inputs at the places
    `gapped` have a gap behind each row, `out_gap` gives the output one. `whose` says in messages
    what ran: the student's kernel, or functions of the student inside a kernel of the book.
    """

    inputs: tuple[Tensor, ...]
    shape: tuple[int, ...]
    arguments: Callable[[Sequence[Tensor], Tensor], tuple]
    grid: tuple[int, ...]
    constants: dict[str, Any]
    dtype: torch.dtype = torch.float64
    gapped: tuple[int, ...] = ()
    out_gap: bool = False
    whose: str = "your kernel"


class Guarded:
    """A tensor inside a larger buffer of `beside`; `gap` numbers of it lie behind each row."""

    def __init__(self, inside: Tensor, beside: float, gap: int = 0, device: str = "cpu"):
        columns = inside.shape[-1]
        rows = inside.numel() // columns
        self.stop = GUARD + rows * (columns + gap)
        shape = (self.stop + GUARD,)
        self.buffer = torch.full(shape, beside, dtype=inside.dtype, device=device)
        steps = (1,) if inside.dim() == 1 else (columns + gap, 1)
        self.tensor = self.buffer.as_strided(inside.shape, steps, GUARD)
        self.tensor.copy_(inside)
        self.outside = torch.ones(shape, dtype=torch.bool)
        self.outside.as_strided(inside.shape, steps, GUARD).fill_(False)
        self.before = self.buffer.clone()

    def changed(self) -> Tensor:
        """Which numbers of the buffer are no longer what they were."""
        same = (self.buffer == self.before) | (self.buffer.isnan() & self.before.isnan())
        return ~same.cpu()


class Changed:
    """A kernel with options set in advance: how the mutants of a puzzle share one text."""

    def __init__(self, kernel: Any, **options: Any):
        self.kernel, self.options = kernel, options
        self.fn = kernel.fn

    def __getitem__(self, grid: tuple[int, ...]) -> Callable:
        return partial(self.kernel[grid], **self.options)


def result_of(answer: Any, case: Case) -> Tensor:
    """What the kernel writes, on the CPU. Refuses writes and reads beside the tensors, and gaps."""
    _is_kernel(answer)
    first, second = (_launched(answer, case, case.grid, beside) for beside in BESIDE)
    _writes(answer, case, first)
    results = first.tensor.cpu().clone(), second.tensor.cpu().clone()
    poisoned = results[0].isnan() & ~results[1].isnan()
    differs = ~results[0].isclose(results[1], rtol=1e-6, equal_nan=True)
    places = (poisoned | differs).nonzero()
    if len(places):
        place = tuple(places[0].tolist())
        raise ExerciseError(
            f"element {_said(place)} of the result is made from numbers that lie beside the "
            "tensor: the load has no mask there, or the wrong one"
        )
    return results[0]


def functions(answer: Any, names: Sequence[str]) -> list[Any]:
    """The answer as Triton functions of these names. NotImplementedError if none is written yet.

    A function is not written if there is nothing in it but `pass`, `...` or a docstring.
    """
    parts = list(answer) if isinstance(answer, tuple | list) else [answer]
    listed = ", ".join(names)
    require(
        len(parts) == len(names), f"expected {len(names)} function(s), {listed}; got {len(parts)}"
    )
    for part, name in zip(parts, names, strict=True):
        _is_triton(part, name)
    empty = [name for part, name in zip(parts, names, strict=True) if _is_empty(part)]
    if len(empty) == len(names):
        raise NotImplementedError
    require(not empty, f"not written yet: {', '.join(empty)}")
    return parts


def _is_kernel(answer: Any) -> None:
    _is_triton(answer, "kernel")
    source = _source(answer)
    if source and not re.search(r"store\w*\(", source):
        raise NotImplementedError


def _is_triton(answer: Any, what: str) -> None:
    if hasattr(answer, "__getitem__") and hasattr(answer, "fn"):
        return
    known = "kernel" if what == "kernel" else f"function for {what}"
    require(callable(answer), f"expected a Triton {known}, got {type(answer).__name__}")
    try:
        answer()
    except NotImplementedError:
        raise
    except Exception:  # it is no kernel, whatever it says
        pass
    raise ExerciseError(f"this is a plain function; a {what} has @triton.jit above it")


def _source(answer: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(answer.fn))
    except (OSError, TypeError):
        return ""


def _is_empty(answer: Any) -> bool:
    try:
        (definition,) = ast.parse(_source(answer)).body
    except (SyntaxError, ValueError):
        return False
    return isinstance(definition, ast.FunctionDef) and all(
        isinstance(line, ast.Pass)
        or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in definition.body
    )


def _launched(answer: Any, case: Case, grid: tuple[int, ...], beside: float) -> Guarded:
    """The output after a launch between guards of `beside`."""
    device = "cpu" if interpreted(getattr(answer, "kernel", answer)) else "cuda"
    inputs = [
        Guarded(given, beside, GAP if place in case.gapped else 0, device)
        for place, given in enumerate(case.inputs)
    ]
    unwritten = torch.full(case.shape, UNWRITTEN, dtype=case.dtype)
    out = Guarded(unwritten, UNTOUCHED, GAP if case.out_gap else 0, device)
    arguments = case.arguments([given.tensor for given in inputs], out.tensor)
    try:
        with warnings.catch_warnings(), numpy.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            answer[grid](*arguments, **case.constants)
    except ExerciseError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise ExerciseError(f"{case.whose} raised {type(cause).__name__}: {cause}") from error
    for given in inputs:
        require(not given.changed().any(), "your kernel writes into one of its inputs")
    return out


def _writes(answer: Any, case: Case, out: Guarded) -> None:
    changed = (out.changed() & out.outside).nonzero().flatten()
    if len(changed):
        if changed[0] < GUARD:
            where = "writes before the beginning: some of its addresses are negative"
        elif changed[0] < out.stop:
            where = "writes into the gap behind a row: columns need a mask, and steps are given"
        else:
            where = "writes past the end: the last block is longer than what is left of the tensor"
            where += ", so the store needs a mask, with the right count for each axis"
        raise ExerciseError(f"the kernel {where}")
    missing = (out.tensor == UNWRITTEN).cpu()
    if not missing.any():
        return
    require(not missing.all(), "the kernel wrote nothing: is the mask of the store ever true?")
    _programs_apart(answer, case)
    place = tuple(missing.nonzero()[0].tolist())
    raise ExerciseError(
        f"element {_said(place)} of the result was never written: {int(missing.sum())} of "
        f"{missing.numel()} elements are missing. Is the mask too narrow, or does it mix up axes?"
    )


def _programs_apart(answer: Any, case: Case) -> None:
    """Refuse a kernel whose second program adds less to the output than the first."""
    if len(case.grid) > 1 or case.grid[0] < 2:
        return
    one, two = (
        (_launched(answer, case, (count,), BESIDE[1]).tensor != UNWRITTEN).cpu() for count in (1, 2)
    )
    added, had = int((two & ~one).sum()), int(one.sum())
    require(
        added > 0,
        "program 1 writes where program 0 wrote, or nothing at all: its elements begin at "
        "tl.program_id(0) * block_size",
    )
    require(
        added >= min(had, one.numel() - had),
        f"program 1 adds only {added} elements to the {had} of program 0: their blocks overlap",
    )


def _said(place: tuple[int, ...]) -> str:
    return str(place[0]) if len(place) == 1 else str(place)


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
