"""Checks of what a query may see: the future, padding, rows without keys."""

import torch
from torch import Tensor

from attnlib.conformance.report import Broken, NotChecked
from attnlib.conformance.trial import EXACT, Inputs, Trial, difference, draw, lower, slopes


def depends(trial: Trial, inputs: Inputs, **options) -> Tensor:
    """Which queries notice when key j and its value change: a bool table (N, M)."""
    base = trial(inputs, **options)
    columns = []
    for j in range(inputs.key.shape[-2]):
        key, value = inputs.key.clone(), inputs.value.clone()
        key[..., j, :] = -3 * key[..., j, :] + 1
        value[..., j, :] += 5
        moved = trial(inputs._replace(key=key, value=value), **options) - base
        columns.append(~(moved.abs().amax(-1) <= EXACT))
    return torch.stack(columns, dim=-1).flatten(0, -3).any(0)


def check_no_leak(trial: Trial) -> None:
    """Under is_causal no query sees a key of its future, whatever the numbers and the offset."""
    _needs_causal(trial)
    offsets = (0, 2) if trial.takes("query_offset") else (0,)
    shapes = ((5, 5), (3, 7), (7, 3)) if trial.promises.cross else ((5, 5),)
    for queries, keys in shapes:
        if min(queries, keys) < trial.promises.shortest:
            continue
        for offset in offsets:
            options = {"query_offset": offset} if offset else {}
            seen = depends(trial, draw(queries, keys), is_causal=True, **options)
            leak = seen & ~lower(queries, keys, offset)
            if leak.any():
                raise Broken(_say_leak(seen, leak, offset))


def _say_leak(seen: Tensor, leak: Tensor, offset: int) -> str:
    queries, keys = seen.shape
    i, j = leak.nonzero()[0].tolist()
    causes = {
        "no causal mask is applied": torch.ones_like(seen),
        "the mask is shifted by one": lower(queries, keys, offset + 1),
        "the mask is aligned at its bottom right corner, not at the top left": lower(
            queries, keys, keys - queries
        ),
        "the mask is upside down": ~lower(queries, keys, offset - 1),
        "query_offset is ignored": lower(queries, keys),
    }
    cause = next((f": {name}" for name, table in causes.items() if torch.equal(seen, table)), "")
    at = f" (with query_offset={offset})" if offset else ""
    return f"with {queries} queries and {keys} keys row {i} sees key {j}, which lies in its " + (
        f"future{at}{cause}"
    )


def check_appending(trial: Trial) -> None:
    """Under is_causal tokens appended at the end change nothing before them."""
    _needs_causal(trial)
    whole = draw(9, 9)
    for length in trial.lengths(1, 4, 8):
        start = Inputs(*(tensor[..., :length, :] for tensor in whole))
        wanted = trial(start, is_causal=True)
        got = trial(whole, is_causal=True)[..., :length, :]
        if difference(got, wanted) > EXACT:
            row = (got - wanted).abs().amax((0, 1, 3)).gt(EXACT).nonzero()[0].item()
            raise Broken(
                f"row {row} of {length} tokens changes when {9 - length} more are appended: "
                "something depends on the length of the whole sequence"
            )


def padded(queries: int = 5, keys: int = 6) -> tuple[Inputs, Tensor, tuple[int, int]]:
    """Inputs, a padding mask (2, 1, 1, keys) and the true lengths of the two sequences.

    The padding holds large numbers, so that its scores stand far above all others.
    """
    inputs, lengths = draw(queries, keys), (keys, keys - 2)
    mask = torch.arange(keys) < torch.tensor(lengths)[:, None, None, None]
    return inputs, mask, lengths


def check_padding(trial: Trial) -> None:
    """Keys that attn_mask forbids change nothing: not their scores, not their values."""
    _needs_mask(trial)
    inputs, mask, lengths = padded(queries=6)
    if trial.promises.cross:
        for b, length in enumerate(lengths):
            alone = Inputs(*(tensor[b : b + 1] for tensor in inputs))
            cut = alone._replace(key=alone.key[..., :length, :], value=alone.value[..., :length, :])
            got, wanted = trial(inputs, attn_mask=mask)[b : b + 1], trial(cut)
            if difference(got, wanted) > EXACT:
                raise Broken(
                    f"sequence {b} with {6 - length} padded keys reads something else than the "
                    f"same sequence cut to its {length} keys"
                )
    # Now the keys score low and the padding high: a mask that is only a large number gives way.
    size = trial.promises.score_range / 2  # width 4 and scale 1/2: scores of the promised size
    query, key = torch.ones_like(inputs.query), torch.full_like(inputs.key, -size)
    changed = key.masked_fill(~mask.mT, size)
    value = inputs.value.masked_fill(~mask.mT, 1e3)
    wanted = trial(Inputs(query, key, inputs.value), attn_mask=mask)
    got = trial(Inputs(query, changed, value), attn_mask=mask)
    if difference(got, wanted) > EXACT:
        raise Broken("a padded key with a high score changes the read: it is not kept out")


def check_mask_of_each_sequence(trial: Trial) -> None:
    """Each sequence and each head follows its own part of attn_mask."""
    _needs_mask(trial)
    inputs = draw(4, 4)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(2, 2, 4, 4, generator=generator) < 0.5
    mask |= torch.eye(4, dtype=torch.bool)
    both = trial(inputs, attn_mask=mask)
    for b in range(2):
        for h in range(2):
            one = Inputs(*(tensor[b : b + 1, h : h + 1] for tensor in inputs))
            alone = trial(one, attn_mask=mask[b : b + 1, h : h + 1])
            if difference(both[b : b + 1, h : h + 1], alone) > EXACT:
                raise Broken(f"head {h} of sequence {b} does not follow its own part of attn_mask")
    table = trial(inputs, attn_mask=mask[0, 0])
    if difference(table, trial(inputs, attn_mask=mask[0, 0].expand(2, 2, 4, 4))) > EXACT:
        raise Broken("attn_mask of shape (N, M) is not the same for every sequence and head")


def check_empty_support(trial: Trial) -> None:
    """A row without any allowed key reads zero, and its gradients are finite."""
    _needs_mask(trial)
    inputs = Inputs(*(tensor.requires_grad_() for tensor in draw(4, 5)))
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[2] = False
    read = trial(inputs, attn_mask=mask)
    row = read[0, 0, 2]
    if not torch.equal(read[..., 2, :], torch.zeros_like(read[..., 2, :])):
        mean = torch.allclose(row, inputs.value[0, 0].mean(-2), atol=1e-6)
        what = "the mean of all values: its weights are uniform" if mean else str(row.tolist())
        raise Broken(f"row 2 may see no key, but it reads {what}, expected zeros")
    for name, slope in zip(inputs._fields, slopes(read.square().sum(), inputs), strict=True):
        if not slope.isfinite().all():
            raise Broken(f"row 2 may see no key, and the gradient of {name} is not finite")


def _needs_causal(trial: Trial) -> None:
    if not trial.promises.causal:
        raise NotChecked("promises no causal form")
    trial.needs("is_causal")


def _needs_mask(trial: Trial) -> None:
    if not trial.promises.padding:
        raise NotChecked("promises nothing about padding")
    trial.needs("attn_mask")
