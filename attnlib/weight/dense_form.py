"""The dense function that a mechanism with another weight must equal."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from attnlib.attend import attend
from attnlib.score.compare import dot_product


def dense_form(
    weight: Callable[..., Tensor], score: Callable[..., Tensor] = dot_product
) -> Callable[..., Tensor]:
    """`attend` with this weight (and score), under a name that says so."""
    dense = partial(attend, weight=weight, score=score)
    dense.__name__ = f"attend(weight={weight.__name__})"
    return dense
