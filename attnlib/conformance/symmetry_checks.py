"""Checks of what must not matter, and of the weights: neighbors in the batch, order, sums."""

from typing import Any

import torch

from attnlib.conformance.report import Broken, NotChecked
from attnlib.conformance.trial import EXACT, Inputs, Trial, difference, draw, lower, weights_of


def check_batch_independence(trial: Trial) -> None:
    """A sequence reads the same alone as in a batch."""
    inputs = draw(4, 4, lead=(3, 2))
    for setting in trial.causal_settings():
        together = trial(inputs, **setting)
        for b in range(3):
            alone = Inputs(*(tensor[b : b + 1] for tensor in inputs))
            if difference(together[b : b + 1], trial(alone, **setting)) > EXACT:
                raise Broken(f"sequence {b} reads something else alone than in a batch of 3")


def check_head_independence(trial: Trial) -> None:
    """A head reads the same alone as beside other heads."""
    inputs = draw(4, 4, lead=(2, 3))
    for setting in trial.causal_settings():
        together = trial(inputs, **setting)
        for h in range(3):
            alone = Inputs(*(tensor[:, h : h + 1] for tensor in inputs))
            if difference(together[:, h : h + 1], trial(alone, **setting)) > EXACT:
                raise Broken(
                    f"head {h} reads something else alone than beside 2 others: heads are mixed"
                )


def check_grouped_query(trial: Trial) -> None:
    """With enable_gqa query head h reads key head h // (heads / key heads)."""
    if not trial.promises.grouped_query:
        raise NotChecked("promises no grouped-query form")
    trial.needs("enable_gqa")
    grouped = draw(4, 5 if trial.promises.cross else 4, lead=(2, 6), key_lead=(2, 2))
    for setting in trial.causal_settings():
        read = trial(grouped, enable_gqa=True, **setting)
        for h in range(6):
            g = h // 3
            one = Inputs(
                grouped.query[:, h : h + 1],
                grouped.key[:, g : g + 1],
                grouped.value[:, g : g + 1],
            )
            if difference(read[:, h : h + 1], trial(one, **setting)) > EXACT:
                raise Broken(
                    f"of 6 query heads and 2 key heads, query head {h} does not read key head {g}: "
                    "heads are repeated in the wrong order (repeat_interleave, not repeat)"
                )


def check_query_order(trial: Trial) -> None:
    """Permuting the queries permutes the reads."""
    if not trial.promises.query_equivariant:
        raise NotChecked("promises nothing about the order of queries")
    inputs, order = draw(6, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = inputs._replace(query=inputs.query[..., order, :])
    if difference(trial(mixed), trial(inputs)[..., order, :]) > EXACT:
        raise Broken("permuting the queries does more than permute the reads: queries are mixed")


def check_key_order(trial: Trial) -> None:
    """Permuting the keys together with their values changes nothing."""
    if not trial.promises.key_invariant:
        raise NotChecked("promises nothing about the order of keys")
    inputs, order = draw(6, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = inputs._replace(key=inputs.key[..., order, :], value=inputs.value[..., order, :])
    if difference(trial(mixed), trial(inputs)) > EXACT:
        raise Broken("permuting the keys together with their values changes the read")


def check_linear_in_values(trial: Trial) -> None:
    """The read of a sum of values is the sum of the reads."""
    if not trial.promises.linear_in_values:
        raise NotChecked("promises no weighted sum of the values")
    inputs, other = draw(5, 5), draw(5, 5, seed=1)
    for setting in trial.causal_settings():
        wanted = trial(inputs, **setting) + 2 * trial(inputs._replace(value=other.value), **setting)
        got = trial(inputs._replace(value=inputs.value + 2 * other.value), **setting)
        if difference(got, wanted) > EXACT:
            raise Broken(
                f"the read is no weighted sum of the values (off by {difference(got, wanted):.1e}, "
                "in float64): the weights depend on them, or it is computed in a smaller dtype"
            )


def check_normalized(trial: Trial) -> None:
    """The weights of every row sum to one."""
    if not (trial.promises.normalized and trial.promises.linear_in_values):
        raise NotChecked("promises no weights that sum to one")
    for setting in trial.causal_settings():
        sums = weights_of(trial, draw(5, 5), **setting).sum(-1)
        if difference(sums, torch.ones_like(sums)) > EXACT:
            row = (sums[0, 0] - 1).abs().argmax().item()
            raise Broken(
                f"the weights of row {row} sum to {sums[0, 0, row].item():.9g}, not to one"
                + (" under is_causal" if setting else "")
            )


def check_positive(trial: Trial) -> None:
    """No weight is negative."""
    if not (trial.promises.positive and trial.promises.linear_in_values):
        raise NotChecked("promises no positive weights")
    for setting in trial.causal_settings():
        weights = weights_of(trial, draw(5, 5), **setting)
        if weights.min() < -EXACT:
            *_, i, j = (weights == weights.min()).nonzero()[0].tolist()
            raise Broken(f"row {i} gives key {j} the negative weight {weights.min().item():.3f}")


def check_positions_tag(trial: Trial) -> None:
    """The tag soft, hard or local is true of the weights."""
    if not trial.promises.linear_in_values:
        raise NotChecked("promises no weighted sum of the values")
    if trial.positions is None:
        raise NotChecked("has no entry in the atlas")
    for setting in trial.causal_settings():
        weights = weights_of(trial, draw(32, 32), **setting)
        support = lower(32, 32) if setting else torch.ones(32, 32, dtype=torch.bool)
        nonzero = (weights != 0).flatten(0, -3)
        if trial.positions == "soft":
            nonzero = _reached(trial, setting, nonzero, support)
        if trial.positions == "soft" and not (nonzero == support).all():
            raise Broken("is tagged soft, but not every key of the support has weight")
        if trial.positions == "hard" and (nonzero.sum(-1) != 1).any():
            raise Broken("is tagged hard, but not every row gives all weight to one key")
        if trial.positions == "local":
            _check_local(nonzero.any(0))


def _reached(
    trial: Trial, setting: dict[str, Any], nonzero: torch.Tensor, support: torch.Tensor
) -> torch.Tensor:
    """The keys that have weight for a query, for that query or its opposite made weak, or aimed at.

    A weight with exact zeros drops keys because of their scores, not because of their places: it
    reads them again where the scores are nearly equal, where they change their sign, or where the
    query points the way of the key.
    """
    inputs = draw(32, 32)
    weak = [1e-3 * inputs.query, -1e-3 * inputs.query]
    aimed = [inputs.key.roll(shift, dims=-2) for shift in range(32)]
    for query in weak + aimed:
        if (nonzero | ~support).all():
            break
        weights = weights_of(trial, inputs._replace(query=query), **setting)
        nonzero = nonzero | (weights != 0).flatten(0, -3)
    return nonzero


def _check_local(nonzero: torch.Tensor) -> None:
    distance = (torch.arange(32)[:, None] - torch.arange(32)).abs()
    if distance[nonzero].max() > 16:
        raise Broken("is tagged local, but a key further than half the sequence away has weight")
