"""The public check: hold a function to its promises, one after the other."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from attnlib.atlas import Mechanism, Promises, entry_of
from attnlib.conformance import (
    error_checks,
    form_checks,
    oracle_checks,
    support_checks,
    symmetry_checks,
)
from attnlib.conformance.report import (
    BROKEN,
    HOLDS,
    NOT_CHECKED,
    Broken,
    ConformanceError,
    NotChecked,
    Report,
    Row,
)
from attnlib.conformance.trial import Trial

CHECKS: dict[str, Callable[[Trial], None]] = {
    "shape of the read": form_checks.check_shape,
    "cross-attention lengths": form_checks.check_cross_lengths,
    "length 0 and 1, one key": form_checks.check_length_zero_and_one,
    "non-contiguous inputs": form_checks.check_non_contiguous,
    "inputs not changed": form_checks.check_inputs_kept,
    "determinism": form_checks.check_determinism,
    "dtypes and rounding": form_checks.check_dtypes,
    "no leak from the future": support_checks.check_no_leak,
    "appending changes nothing before": support_checks.check_appending,
    "masked keys change nothing": support_checks.check_padding,
    "each sequence its own mask": support_checks.check_mask_of_each_sequence,
    "empty support reads zero": support_checks.check_empty_support,
    "batch independence": symmetry_checks.check_batch_independence,
    "head independence": symmetry_checks.check_head_independence,
    "grouped-query heads": symmetry_checks.check_grouped_query,
    "order of queries": symmetry_checks.check_query_order,
    "order of keys": symmetry_checks.check_key_order,
    "linear in the values": symmetry_checks.check_linear_in_values,
    "weights sum to one": symmetry_checks.check_normalized,
    "weights not negative": symmetry_checks.check_positive,
    "soft, hard or local": symmetry_checks.check_positions_tag,
    "finite range": oracle_checks.check_finite_range,
    "gradients": oracle_checks.check_gradients,
    "equality with the oracle": oracle_checks.check_oracle,
    "token by token": oracle_checks.check_recurrent,
    "clear errors": error_checks.check_clear_errors,
}


def check(
    function: Callable[..., Tensor] | Mechanism,
    promises: Promises | None = None,
    *,
    oracle: Callable[..., Tensor] | None = None,
    arguments: Callable[[Tensor, Tensor, Tensor], dict[str, Any]] | None = None,
    recurrent: Callable[..., tuple[Tensor, Any]] | None = None,
) -> Report:
    """Hold an attention function `(query, key, value, ...) -> read` to its promises.

    `promises` says which promises it makes (all of `Promises()` unless given), `oracle` the dense
    function that it must equal, `arguments(query, key, value)` the further arguments that a call
    needs, `recurrent` its form for one token at a time. For a mechanism of the atlas the entry
    supplies what is not given. A promise about an argument that the function does not take is not
    checked, and the report says so.
    Returns the Report, which prints as a table; raises ConformanceError where a promise is broken.
    """
    entry = function if isinstance(function, Mechanism) else entry_of(function)
    if entry is None:
        trial = Trial(function, promises or Promises(), oracle, arguments, recurrent)
        name = getattr(function, "__name__", type(function).__name__)
    elif promises is None and entry.promises is None:
        raise ValueError(
            f"function must have the form (query, key, value, ...) -> read, got {entry.name}, "
            "which has another"
        )
    else:
        trial = Trial(
            entry.function,
            promises or entry.promises,
            oracle or entry.oracle,
            arguments,
            recurrent or entry.recurrent,
            entry.taxonomy.positions,
        )
        name = entry.name
    report = Report(name, tuple(row_of(promise, run, trial) for promise, run in CHECKS.items()))
    if report.broken:
        raise ConformanceError(report)
    return report


def row_of(promise: str, run: Callable[[Trial], None], trial: Trial) -> Row:
    """Run one check; an error of the function itself breaks the promise too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(trial)
    except NotChecked as reason:
        return Row(promise, NOT_CHECKED, str(reason))
    except Broken as broken:
        return Row(promise, BROKEN, str(broken))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return Row(promise, BROKEN, f"raised {type(error).__name__}: {first}")
    return Row(promise, HOLDS, (run.__doc__ or "").splitlines()[0])
