"""The classes of the words of `Grammar`: types of tokens that a router may tell apart."""

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.tasks.grammar import (
    ADJECTIVES,
    CLOSING,
    FRAME,
    OPENING,
    PLURAL,
    PREPOSITIONS,
    SINGULAR,
    VERBS,
    WORDS,
)

CLASSES = {
    "singular noun": SINGULAR,
    "plural noun": PLURAL,
    "preposition": PREPOSITIONS,
    "adjective": ADJECTIVES,
    "verb": VERBS,
    "bracket": OPENING + CLOSING,
    "article": ("the",),
    "full stop": (".",),
    "frame": tuple(word for word in FRAME if word not in ("the", ".")),
}
"""Each class of words by its name; every word belongs to one of them."""

CLASS_OF = torch.tensor(
    [next(i for i, words in enumerate(CLASSES.values()) if word in words) for word in WORDS]
)
"""The number of the class of each token."""


def word_classes(tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The number of each token's class, in the order of `CLASSES`.

    Raises ValueError for a token that is no word of the grammar.
    """
    if tokens.is_floating_point():
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(WORDS):
        raise ValueError(
            f"tokens must lie in 0 ... {len(WORDS) - 1}, "
            f"got {int(tokens.min())} ... {int(tokens.max())}"
        )
    return CLASS_OF[tokens]
