"""Reading an answer: call a function safely, turn numbers into tensors, compare."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnlib.exercises.registry import ExerciseError


def require(condition: bool | Tensor, message: str) -> None:
    """Refuse the answer with `message` unless the condition holds."""
    if not bool(condition):
        raise ExerciseError(message)


def call(function: Callable, *inputs: Any, **options: Any) -> Any:
    """The function's result. Refuses what is no function, what raises and what changes its inputs.

    NotImplementedError passes through: `check` reads it as "not attempted yet".
    """
    require(callable(function), f"expected a function, got {type(function).__name__}")
    kept = [given.clone() if isinstance(given, Tensor) else given for given in inputs]
    try:
        result = function(*inputs, **options)
    except (NotImplementedError, ExerciseError):
        raise
    except Exception as error:
        shapes = ", ".join(_described(given) for given in inputs)
        raise ExerciseError(
            f"your function raised {type(error).__name__}: {error} (called with {shapes})"
        ) from error
    for before, given in zip(kept, inputs, strict=True):
        if isinstance(given, Tensor):
            same = torch.equal(before.nan_to_num(), given.nan_to_num())
            require(same, "your function changes its input: work on a copy, not in place")
    return result


def tensor_of(result: Any, shape: tuple[int, ...], what: str = "the result") -> Tensor:
    """The result, refused unless it is a tensor of the given shape."""
    require(
        isinstance(result, Tensor),
        f"{what} must be a tensor of shape {shape}, got {type(result).__name__}"
        + (": does your function lack a return?" if result is None else ""),
    )
    came = tuple(result.shape)
    swapped = len(came) >= 2 and (*came[:-2], came[-1], came[-2]) == shape != came
    require(
        came == shape,
        f"{what} must have shape {shape}, got {came}"
        + (": the last two are swapped, rows are queries and columns keys" if swapped else ""),
    )
    return result


def numbers(answer: Any, count: int) -> Tensor:
    """The answer as a vector of `count` float64 numbers; lists, tuples and tensors will do."""
    try:
        given = torch.as_tensor(answer, dtype=torch.float64).detach().flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ExerciseError(f"expected {count} number(s), got {answer!r}") from error
    require(given.numel() == count, f"expected {count} number(s), got {given.numel()}")
    require(given.isfinite().all(), f"expected finite numbers, got {answer!r}")
    return given


def close(a: Any, b: Any, tolerance: float = 1e-6) -> bool:
    """Whether two tensors or numbers agree to `tolerance`, relative and absolute."""
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def compared(
    given: Tensor, right: Tensor, likely: Sequence[tuple[Tensor, str]], otherwise: str, **options
) -> None:
    """Refuse a result that is not `right`, with the words of the likely mistake that it shows."""
    if close(given, right, **options):
        return
    for wrong, message in likely:
        require(not close(given, wrong, **options), message)
    require(not given.isnan().any(), f"the result holds NaN. {otherwise}")
    raise ExerciseError(otherwise)


def _described(given: Any) -> str:
    return f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
