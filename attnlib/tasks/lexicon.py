"""Sentences in which one word decides the label, with a noisy lexicon that flags such words."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

SALIENT, FILLERS = 10, 100
WORDS = SALIENT + FILLERS


class LexiconBatch(NamedTuple):
    """tokens, flags (1.0 where the lexicon lists the word), labels 0 or 1, place of the word."""

    tokens: Int[Tensor, "B N"]
    flags: Float[Tensor, "B N 1"]
    labels: Int[Tensor, " B"]
    place: Int[Tensor, " B"]


def sentences(
    count: int,
    length: int,
    generator: torch.Generator,
    *,
    noise: float = 0.1,
    informative: bool = True,
) -> LexiconBatch:
    """`count` sentences of `length` words with exactly one salient word each; chance is 1/2.

    Words 0 to 9 are salient: an even one makes the label 0, an odd one 1. The others are fillers.
    The lexicon errs on a share `noise` of all words. With `informative=False` each sentence's flags
    are shuffled over its words: as many flags, but they say nothing.
    """
    if not 0 <= noise <= 0.5:
        raise ValueError(f"noise must lie in [0, 0.5], got {noise}")
    tokens = torch.randint(SALIENT, WORDS, (count, length), generator=generator)
    place = torch.randint(length, (count,), generator=generator)
    word = torch.randint(SALIENT, (count,), generator=generator)
    tokens[torch.arange(count), place] = word
    flags = (tokens < SALIENT) ^ (torch.rand(count, length, generator=generator) < noise)
    if not informative:
        order = torch.rand(count, length, generator=generator).argsort(-1)
        flags = flags.gather(1, order)
    return LexiconBatch(tokens, flags[..., None].float(), word % 2, place)
