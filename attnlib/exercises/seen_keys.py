"""Which keys each query sees, found from outside, and what a wrong table looks like, in words."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.exercises.answers import require


def seen_keys(
    attention: Callable[..., Tensor],
    query: Float[Tensor, "*b N D"],
    key: Float[Tensor, "*b M D"],
    value: Float[Tensor, "*b M E"],
    **options,
) -> Bool[Tensor, "N M"]:
    """Whether query i, in any sequence or head, reads otherwise when key j and its value change.

    A key whose weight is zero to rounding counts as not seen. A read that is not finite before or
    after the change counts as another one.
    """
    before = attention(query, key, value, **options)
    columns = []
    for j in range(key.shape[-2]):
        other_key, other_value = key.clone(), value.clone()
        other_key[..., j, :] = 1 - 3 * other_key[..., j, :]
        other_value[..., j, :] += 5
        moved = attention(query, other_key, other_value, **options) - before
        columns.append(~(moved.abs().amax(-1) <= 1e-9))
    table = torch.stack(columns, dim=-1)
    return table.reshape(-1, *table.shape[-2:]).any(0)


def require_support(
    seen: Bool[Tensor, "N M"], allowed: Bool[Tensor, "N M"], case: str = ""
) -> None:
    """Refuse what is seen unless it is what is allowed: names a row, a key and the likely cause."""
    wrong = (seen & ~allowed).nonzero().tolist()
    if wrong:
        i, j = wrong[0]
        require(False, f"{case}row {i} sees key {j}, which it may not see{cause(seen, allowed)}")
    missing = (allowed & ~seen).nonzero().tolist()
    if missing:
        i, j = missing[0]
        require(False, f"{case}row {i} does not see key {j}, which it may{cause(seen, allowed)}")


def cause(seen: Bool[Tensor, "N M"], allowed: Bool[Tensor, "N M"]) -> str:
    """The mistake that makes `seen` out of `allowed`, as the end of a sentence."""
    corner = allowed.shape[1] - allowed.shape[0]
    mistakes = {
        "no mask is applied": seen.all(),
        "the mask is shifted by one": is_shifted(seen, allowed, 1) or is_shifted(seen, allowed, -1),
        "the mask is aligned at its last row and key, not at the first": is_shifted(
            seen, allowed, corner
        ),
        "rows and columns of the mask are swapped": seen.equal(allowed.mT),
        "the mask hides what it should show, and shows the rest": seen.equal(~allowed),
    }
    return next((f": {name}" for name, found in mistakes.items() if found), "")


def is_shifted(seen: Bool[Tensor, "N M"], allowed: Bool[Tensor, "N M"], step: int) -> bool:
    """Whether row by row `seen` is `allowed`, moved by `step` keys towards the end."""
    columns = allowed.shape[1] - abs(step)
    if columns < 1:
        return False
    first, second = max(step, 0), max(-step, 0)
    return seen[:, first : first + columns].equal(allowed[:, second : second + columns])
