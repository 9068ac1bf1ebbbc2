"""Gate one and three of every kernel: its numbers against float64, interpreted and on a GPU.

Three gates stand before a kernel:

1. the interpreter, float64 and float32, odd lengths: is the arithmetic right?
2. the compiler, for three chips and without any (`offline_compile.py`): is it legal Triton, does
   it fit in shared memory, does it spill registers?
3. the GPU, all dtypes: does rounding stay within the table below, does a repeated run give the
   same bits?

The metric is RMS(actual - exact) / RMS(exact), where exact is the reference in float64 on the same
rounded inputs. A second bound, four times as wide, holds the largest error against the largest
exact number: it catches a single wrong row. bfloat16 at 1e-2 is blind to one missing key in one
row (2e-4), so float64 and float32 decide what is right; low precision guards the dtype's path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from attnlib.kernels.proof import Case, Proof
from torch import Tensor

TOLERANCES = {
    "float64": 1e-12,
    "float32": 5e-6,
    "float32 with tf32 products": 2e-3,
    "float16": 2e-3,
    "bfloat16": 1e-2,
    "bfloat16, gradients of the delta rule": 1.5e-2,
}
LARGEST_OVER_RMS = 4.0


class GateError(AssertionError):
    """A kernel's numbers are outside the bounds; the message lists each one."""


@dataclass(frozen=True)
class Error:
    """How far one output or gradient lies from the exact one, relative to its size."""

    name: str
    rms: float
    largest: float

    def within(self, tolerance: float) -> bool:
        return self.rms <= tolerance and self.largest <= LARGEST_OVER_RMS * tolerance


def tolerance_of(dtype: torch.dtype) -> float:
    """The RMS tolerance of a dtype whose products are not rounded to tf32."""
    return TOLERANCES[str(dtype).removeprefix("torch.")]


def error_of(name: str, actual: Tensor, exact: Tensor) -> Error:
    """RMS(actual - exact) / RMS(exact), and the same with the largest magnitude.

    NaN or infinity in `actual` is an infinite error. Where `exact` is zero (below the epsilon of
    the dtype of `actual`), so must `actual` be, up to four epsilons; a miss is infinite too.
    """
    if actual.shape != exact.shape:
        raise GateError(f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}")
    if actual.numel() == 0:
        return Error(name, 0.0, 0.0)
    epsilon = torch.finfo(actual.dtype).eps
    actual, exact = actual.detach().double(), exact.detach().double()
    if not actual.isfinite().all():
        return Error(name, torch.inf, torch.inf)
    if exact.abs().max() <= epsilon:
        error = 0.0 if actual.abs().max() <= 4 * epsilon else torch.inf
        return Error(name, error, error)
    difference = actual - exact
    rms = difference.square().mean().sqrt() / exact.square().mean().sqrt()
    return Error(name, rms.item(), (difference.abs().max() / exact.abs().max()).item())


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Fill what torch.empty and its kin return with NaN (integers: the largest).

    An output element that a kernel forgets to write is then a failure instead of luck.
    """

    def poison(make: Callable) -> Callable:
        def poisoned(*arguments, **options) -> Tensor:
            tensor = make(*arguments, **options)
            if tensor.dtype == torch.bool:
                return tensor.fill_(True)
            exact = not (tensor.is_floating_point() or tensor.is_complex())
            return tensor.fill_(torch.iinfo(tensor.dtype).max if exact else torch.nan)

        return poisoned

    with (
        mock.patch.object(torch, "empty", poison(torch.empty)),
        mock.patch.object(torch, "empty_like", poison(torch.empty_like)),
        mock.patch.object(torch, "empty_strided", poison(torch.empty_strided)),
        mock.patch.object(Tensor, "new_empty", poison(Tensor.new_empty)),
    ):
        yield


def outputs_and_gradients(function: Callable, arguments: tuple, seed: int = 7) -> dict[str, Tensor]:
    """All outputs and, for a random gradient sent back, the gradient of each argument."""
    outputs = function(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output {number}": output for number, output in enumerate(outputs)}
    wanted = {
        f"gradient of argument {number}": argument
        for number, argument in enumerate(arguments)
        if isinstance(argument, Tensor) and argument.requires_grad
    }
    if wanted:
        draw = torch.Generator().manual_seed(seed)
        sent = [
            torch.randn(output.shape, generator=draw, dtype=torch.float32).to(output)
            for output in outputs
        ]
        gradients = torch.autograd.grad(outputs, tuple(wanted.values()), sent)
        found.update(zip(wanted, gradients, strict=True))
    return found


def in_float64(arguments: tuple) -> tuple:
    """The same numbers in float64, as new leaves that require a gradient where the old ones did."""
    return tuple(
        argument.detach().double().requires_grad_(argument.requires_grad)
        if isinstance(argument, Tensor) and argument.is_floating_point()
        else argument
        for argument in arguments
    )


def compare(kernel: Callable, reference: Callable, arguments: tuple) -> list[Error]:
    """The errors of all outputs and gradients, with poisoned outputs and inputs left unchanged."""
    before = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
    with poisoned_outputs():
        actual = outputs_and_gradients(kernel, arguments)
    for number, (now, then) in enumerate(zip(arguments, before, strict=True)):
        if isinstance(now, Tensor) and not torch.equal(now, then):
            raise GateError(f"argument {number} was changed by the kernel")
    exact = outputs_and_gradients(reference, in_float64(arguments))
    dtype = next(a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point())
    for name, tensor in actual.items():
        if tensor.dtype != dtype:
            raise GateError(f"{name} came back as {tensor.dtype}, the input is {dtype}")
    return [error_of(name, actual[name], exact[name]) for name in exact]


def check_close(proof: Proof, case: Case, tolerance: float) -> None:
    """Raise a GateError naming each output or gradient that is outside the tolerance."""
    errors = compare(proof.kernel, proof.reference, case.arguments)
    outside = [error for error in errors if not error.within(tolerance)]
    if outside:
        listed = "; ".join(
            f"{error.name}: RMS {error.rms:.1e}, largest {error.largest:.1e}" for error in outside
        )
        raise GateError(f"{proof.name}, {case.name}: {listed} (tolerance {tolerance:.0e})")


def check_no_worse_than_plain(proof: Proof, case: Case) -> None:
    """Raise unless each error is at most twice that of plain torch in the same dtype.

    A quarter of the dtype's epsilon, the noise of rounding an output once, is granted on top.
    """
    epsilon = torch.finfo(case.arguments[0].dtype).eps
    plain = compare(proof.reference, proof.reference, case.arguments)
    for ours, theirs in zip(
        compare(proof.kernel, proof.reference, case.arguments), plain, strict=True
    ):
        if ours.rms > 2 * theirs.rms + epsilon / 4:
            raise GateError(
                f"{proof.name}, {case.name}: {ours.name} has RMS error {ours.rms:.1e}, "
                f"plain torch {theirs.rms:.1e}; at most twice that is allowed"
            )


def check_repeats(proof: Proof, case: Case) -> None:
    """Raise unless a second run gives the same bits: a race between programs would not."""
    first = outputs_and_gradients(proof.kernel, case.arguments)
    second = outputs_and_gradients(proof.kernel, case.arguments)
    for name in first:
        if not torch.equal(first[name], second[name]):
            raise GateError(f"{proof.name}, {case.name}: {name} differs between two runs")


def failures(proof: Proof, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> list[str]:
    """Run the numeric gates of one kernel on one device; the messages of those that are red."""
    red = []
    for dtype in dtypes:
        for case in proof.cases(dtype, device):
            try:
                check_close(proof, case, tolerance_of(dtype))
                check_repeats(proof, case)
                if dtype in (torch.float16, torch.bfloat16):
                    check_no_worse_than_plain(proof, case)
            except Exception as problem:
                red.append(f"{dtype}, {case.name}: {type(problem).__name__}: {problem}")
    return red
