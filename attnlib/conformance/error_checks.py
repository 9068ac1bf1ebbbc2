"""Checks that wrong input is refused with an error that names the argument."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from attnlib.conformance.report import Broken, NotChecked
from attnlib.conformance.trial import Inputs, Trial, draw


def check_clear_errors(trial: Trial) -> None:
    """Wrong input raises ValueError or TypeError, and the message names the argument."""
    if not trial.promises.clear_errors:
        raise NotChecked("promises nothing about wrong input")
    for what, name, inputs, options in [*wrong_tensors(trial), *wrong_options(trial)]:
        refuses(lambda inputs=inputs, options=options: run(trial, inputs, options), what, name)


def run(trial: Trial, inputs: Inputs, options: dict[str, Any]) -> None:
    """Call the function with wrong inputs, but with the further arguments of right ones."""
    further = trial.arguments(*draw(4, 4))
    trial.function(*inputs, **{**further, **options})


def refuses(call: Callable[[], object], what: str, name: str) -> None:
    """Raise Broken unless the call raises ValueError or TypeError with the name in its message."""
    try:
        call()
    except (ValueError, TypeError) as error:
        if name not in str(error):
            raise Broken(f"{what}: the message does not name {name!r}: {error}") from error
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise Broken(
            f"{what}: raised {type(error).__name__} ({first}), expected a ValueError or TypeError "
            f"that names {name!r}"
        ) from error
    else:
        raise Broken(f"{what}: no error, expected a ValueError or TypeError that names {name!r}")


def wrong_tensors(trial: Trial) -> Iterator[tuple[str, str, Inputs, dict[str, Any]]]:
    """(what is wrong, the argument, inputs, options) for query, key and value."""
    q, k, v = right = draw(4, 4)
    yield "a query with one dimension", "query", right._replace(query=q[0, 0, 0]), {}
    yield "a key with fewer dimensions", "key", right._replace(key=k[0], value=v[0]), {}
    yield "an integer query", "query", right._replace(query=q.long()), {}
    yield "a query that is a list", "query", right._replace(query=q.tolist()), {}
    yield "a float32 key for a float64 query", "key", right._replace(key=k.float()), {}
    yield "a float32 value for a float64 query", "value", right._replace(value=v.float()), {}
    yield "4 keys and 3 values", "value", right._replace(value=v[..., :3, :]), {}
    three = draw(4, 4, lead=(3, 2))
    yield "another batch size of key", "key", right._replace(key=three.key, value=three.value), {}
    three = draw(4, 4, lead=(2, 3))
    yield "3 key heads for 2", "key", right._replace(key=three.key, value=three.value), {}
    if trial.promises.shared_width:
        yield "another width of key", "key", right._replace(key=k[..., :3]), {}


def wrong_options(trial: Trial) -> Iterator[tuple[str, str, Inputs, dict[str, Any]]]:
    """(what is wrong, the argument, inputs, options) for the options that the function takes."""
    right = draw(4, 4)
    full = torch.ones(4, 4, dtype=torch.bool)
    cases = [
        ("a float mask", "attn_mask", full.double()),
        ("an integer mask", "attn_mask", full.long()),
        ("a mask for 3 keys", "attn_mask", full[:, :3]),
        ("a negative offset", "query_offset", -1),
        ("a fractional offset", "query_offset", 0.5),
        ("a scale of zero", "scale", 0.0),
        ("a scale that is no number", "scale", float("nan")),
        ("a chunk of zero", "chunk", 0),
    ]
    for what, name, given in cases:
        if trial.takes(name):
            causal = {"is_causal": True} if name == "query_offset" else {}
            yield what, name, right, {name: given, **causal}
    if trial.takes("enable_gqa") and trial.promises.grouped_query:
        odd = draw(4, 4, lead=(2, 3), key_lead=(2, 2))
        yield "3 query heads for 2 key heads", "heads", odd, {"enable_gqa": True}
