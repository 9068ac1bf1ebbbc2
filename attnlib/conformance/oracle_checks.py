"""Checks of the numbers: gradients, equality with the oracle, the finite range, token by token."""

import re
from typing import Any

import torch
from torch import Tensor

from attnlib.conformance.report import Broken, NotChecked
from attnlib.conformance.suspects import name_suspect
from attnlib.conformance.trial import EXACT, Inputs, Trial, difference, draw, slopes, takes
from attnlib.score import alibi
from attnlib.support import window

LENGTHS = (1, 15, 63, 100, 257)


def check_gradients(trial: Trial) -> None:
    """Gradients of query, key, value and further tensors agree with finite differences."""
    keys = 5 if trial.promises.cross else 3
    inputs = [
        tensor.requires_grad_() for tensor in draw(3, keys, lead=(1, 1), width=2, value_width=2)
    ]
    fixed = trial.arguments(*inputs)
    learned = [
        name
        for name, given in fixed.items()
        if isinstance(given, Tensor) and given.is_floating_point()
    ]
    tensors = [*inputs, *(fixed[name].clone().requires_grad_() for name in learned)]
    for setting in trial.causal_settings():

        def run(*tensors: Tensor, setting: dict[str, Any] = setting) -> Tensor:
            further = dict(zip(learned, tensors[3:], strict=True))
            return trial(Inputs(*tensors[:3]), **further, **setting)

        try:
            torch.autograd.gradcheck(run, tensors)
        except RuntimeError as error:
            found = re.search(r"with respect to input (\d+)", str(error))
            name = [*Inputs._fields, *learned][int(found[1])] if found else "an input"
            raise Broken(
                f"the gradient of {name} does not agree with finite differences"
            ) from error


def settings_of(trial: Trial, keys: int) -> list[tuple[str, dict[str, Any]]]:
    """The options that the function and its oracle take, each with a name for messages."""
    settings = [("", {})]
    promises = trial.promises
    if promises.causal and trial.takes("is_causal"):
        settings.append((" with is_causal", {"is_causal": True}))
        if trial.takes("query_offset"):
            settings.append((" with query_offset=3", {"is_causal": True, "query_offset": 3}))
    if promises.padding and trial.takes("attn_mask"):
        generator = torch.Generator().manual_seed(keys)
        mask = torch.rand(2, 1, 1, keys, generator=generator) < 0.7
        settings.append((" with attn_mask", {"attn_mask": mask}))
    if trial.takes("scale"):
        settings.append((" with scale=0.3", {"scale": 0.3}))
    if trial.takes("support"):
        settings.append((" with support=window(4)", {"support": window(4)}))
    if trial.takes("score_mod"):
        settings.append((" with score_mod=alibi(2)", {"score_mod": alibi(2)}))
    return [
        (name, options)
        for name, options in settings
        if all(takes(trial.oracle, option) for option in options)
    ]


def check_oracle(trial: Trial) -> None:
    """In float64 the read and its gradients equal the oracle's at lengths 1 to 257."""
    if trial.oracle is None:
        raise NotChecked("no oracle: pass oracle=attnlib.softmax_attention or another dense form")
    allowed = EXACT if trial.promises.exact else trial.promises.error
    for length in trial.lengths(*LENGTHS):
        keys = length + 2 if trial.promises.cross else length
        # Widths that are equal by accident hide mistakes, widths that differ hide others.
        drawn = draw(length, keys, value_width=4 if length in LENGTHS[::2] else 3)
        inputs = Inputs(*(tensor.requires_grad_() for tensor in drawn))
        for name, options in settings_of(trial, keys):
            got, wanted = trial(inputs, **options), trial.expected(inputs, **options)
            off = apart(got, wanted, trial.promises.exact)
            if not off <= allowed:
                raise Broken(
                    f"N={length}, M={keys}{name}: the read is off by {off:.1e} "
                    f"from {trial.oracle.__name__}{name_suspect(trial)}"
                )
            probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
            got, wanted = (
                slopes((got * probe).sum(), inputs),
                slopes((wanted * probe).sum(), inputs),
            )
            for argument, slope, target in zip(inputs._fields, got, wanted, strict=True):
                off = apart(slope, target, trial.promises.exact)
                if not off <= allowed:
                    raise Broken(
                        f"N={length}, M={keys}{name}: the gradient of {argument} is "
                        f"off by {off:.1e} from {trial.oracle.__name__}"
                    )


def apart(got: Tensor, wanted: Tensor, exact: bool) -> float:
    """Largest difference for an exact form, relative root mean square for an approximation."""
    worst = difference(got, wanted)
    if exact or worst == float("inf"):
        return worst
    return ((got - wanted).square().mean() / wanted.square().mean()).sqrt().item()


def check_finite_range(trial: Trial) -> None:
    """Reads and gradients hold no NaN or infinity for scores up to the promised size."""
    width = 64
    entry = (trial.promises.score_range / width**0.5) ** 0.5
    for dtype in trial.promises.dtypes:
        for low, high in ((1, 1), (-1, -1), (-1, 1)):
            inputs = draw(4, 4, width=width, dtype=dtype)
            signs = torch.tensor([low, high, low, high], dtype=dtype)[:, None]
            inputs = Inputs(
                torch.full_like(inputs.query, entry),
                entry * signs.expand_as(inputs.key),
                inputs.value,
            )
            inputs = Inputs(*(tensor.clone().requires_grad_() for tensor in inputs))
            for setting in trial.causal_settings():
                read = trial(inputs, **setting)
                size = f"scores of {low * trial.promises.score_range:.0e} in {dtype}"
                if not read.isfinite().all():
                    raise Broken(
                        f"{size} give {read.flatten()[~read.isfinite().flatten()][0].item()}: "
                        "subtract the largest score before exp, and scale before the product"
                    )
                if not all(slope.isfinite().all() for slope in slopes(read.sum(), inputs)):
                    raise Broken(f"{size} give a gradient that is not finite")


def check_recurrent(trial: Trial) -> None:
    """Token by token the recurrent form gives the rows of the causal form."""
    if trial.recurrent is None:
        raise NotChecked("no form for one token at a time")
    if not (trial.promises.causal and trial.takes("is_causal")):
        raise NotChecked("no causal form to compare with")
    inputs = draw(9, 9)
    wanted = trial(inputs, is_causal=True)
    state, sizes = None, []
    for t in range(9):
        token = Inputs(*(tensor[..., t : t + 1, :] for tensor in inputs))
        read, state = trial.recurrent(state, *token, **trial.arguments(*inputs))
        sizes.append(size_of(state))
        if difference(read, wanted[..., t : t + 1, :]) > EXACT:
            raise Broken(
                f"token {t} reads something else than row {t} of the causal form"
                + _cause(read, inputs)
            )
    if trial.promises.constant_state and len(set(sizes)) != 1:
        raise Broken(f"the state grows from {sizes[0]} to {sizes[-1]} numbers over 9 tokens")


def _cause(read: Tensor, inputs: Inputs) -> str:
    if not read.count_nonzero():
        return ": it reads zero, so its own key is not in the state yet"
    if difference(read, inputs.value[..., :1, :]) <= EXACT:
        return ": it sees the first key only, so the causal mask lacks its query_offset"
    return ""


def size_of(state: Any) -> int:
    """How many numbers a state holds: a tensor, or a tuple of states."""
    if isinstance(state, Tensor):
        return state.numel()
    return sum(size_of(part) for part in state) if isinstance(state, tuple | list) else 0
