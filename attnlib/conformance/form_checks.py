"""Checks of the outer form: shapes, dtypes, lengths, layout in memory, side effects."""

import torch

from attnlib.conformance.report import Broken, NotChecked
from attnlib.conformance.trial import EXACT, Inputs, Trial, difference, draw

ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""How far a dtype may take the read from float64: largest difference over largest read."""


def check_shape(trial: Trial) -> None:
    """The read has the query's leading dimensions and length and the value's width."""
    leads = [(2, 3), (3,), (), (2, 2, 3)] if trial.promises.any_leading else [(2, 3)]
    for lead in leads:
        for value_width in (4, 6, 1):
            inputs = draw(5, 5, lead=lead, value_width=value_width)
            got, wanted = tuple(trial(inputs).shape), (*lead, 5, value_width)
            if got != wanted:
                raise Broken(
                    f"query {tuple(inputs.query.shape)} and value {tuple(inputs.value.shape)} give "
                    f"a read of shape {got}, expected {wanted}"
                )


def check_cross_lengths(trial: Trial) -> None:
    """Queries may be fewer or more than the keys."""
    if not trial.promises.cross:
        raise NotChecked("promises no cross form")
    for queries, keys in ((3, 7), (7, 3), (1, 4), (4, 1)):
        if min(queries, keys) < trial.promises.shortest:
            continue
        got = tuple(trial(draw(queries, keys)).shape)
        if got != (2, 2, queries, 3):
            raise Broken(
                f"{queries} queries and {keys} keys give a read of shape {got}, "
                f"expected {(2, 2, queries, 3)}"
            )


def check_dtypes(trial: Trial) -> None:
    """The read has the dtype of the query and stays near the float64 read."""
    for dtype in trial.promises.dtypes:
        inputs = draw(33, 33, dtype=dtype, width=8)
        for setting in trial.causal_settings():
            try:
                got = trial(inputs, **setting)
            except RuntimeError as error:
                raise Broken(f"in {dtype} the call raises: {error}") from error
            if got.dtype != dtype:
                raise Broken(f"query of {dtype} gives a read of {got.dtype}")
            if dtype in ROUNDING:
                exact = trial(Inputs(*(tensor.double() for tensor in inputs)), **setting)
                error = ((got.double() - exact).abs().max() / exact.abs().max()).item()
                if not error <= ROUNDING[dtype]:
                    raise Broken(
                        f"in {dtype} the read is off by {error:.1e} of its size, "
                        f"allowed are {ROUNDING[dtype]:.0e}"
                    )


def check_length_zero_and_one(trial: Trial) -> None:
    """No queries give an empty read, no keys a read of zeros, one key its own value."""
    if trial.promises.shortest > 1:
        raise NotChecked(f"takes no fewer than {trial.promises.shortest} tokens")
    if trial.promises.shortest == 0:
        for queries, keys in ((0, 0), (0, 4), (4, 0)):
            if queries != keys and not trial.promises.cross:
                continue
            got = trial(draw(queries, keys))
            if tuple(got.shape) != (2, 2, queries, 3):
                raise Broken(
                    f"{queries} queries and {keys} keys give a read of shape {tuple(got.shape)}, "
                    f"expected {(2, 2, queries, 3)}"
                )
            if got.count_nonzero():
                raise Broken(f"without keys the read is {got[0, 0, 0].tolist()}, expected zeros")
    inputs = draw(1, 1)
    got = trial(inputs)
    if trial.promises.normalized and difference(got, inputs.value) > EXACT:
        raise Broken(
            f"with a single key the read is {got[0, 0, 0].tolist()}, "
            f"expected its value {inputs.value[0, 0, 0].tolist()}"
        )


def check_non_contiguous(trial: Trial) -> None:
    """Inputs may lie in memory in any order."""
    inputs = draw(5, 5)
    turned = Inputs(*(tensor.mT.contiguous().mT for tensor in inputs))
    strided = Inputs(*(tensor.repeat_interleave(2, dim=-1)[..., ::2] for tensor in inputs))
    wanted = trial(inputs)
    for name, other in (("a transposed", turned), ("a strided", strided)):
        if difference(trial(other), wanted) > EXACT:
            raise Broken(f"{name} view of the same numbers gives another read")


def check_inputs_kept(trial: Trial) -> None:
    """The inputs and the mask are not changed."""
    inputs = draw(5, 5)
    before = Inputs(*(tensor.clone() for tensor in inputs))
    options = trial.causal_settings()[-1]
    if trial.takes("attn_mask"):
        options = options | {"attn_mask": draw(5, 5).query[..., :1].mT.expand(2, 2, 5, 5) > 0}
        mask = options["attn_mask"].clone()
    trial(inputs, **options)
    for name, old, new in zip(inputs._fields, before, inputs, strict=True):
        if not torch.equal(old, new):
            raise Broken(f"{name} is changed by the call: work on a copy, not in place")
    if "attn_mask" in options and not torch.equal(mask, options["attn_mask"]):
        raise Broken("attn_mask is changed by the call: work on a copy, not in place")


def check_determinism(trial: Trial) -> None:
    """The same inputs give the same bits, and the global random state is left alone."""
    inputs, state = draw(9, 9), torch.get_rng_state()
    first = trial(inputs)
    if not torch.equal(first, trial(inputs)):
        raise Broken("two calls with the same inputs give different reads")
    if not torch.equal(state, torch.get_rng_state()):
        raise Broken("the call draws from the global random generator: pass a generator instead")
