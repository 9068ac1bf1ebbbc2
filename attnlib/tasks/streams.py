"""Streams that ask of a memory more than it can hold: pairs, outliers, far questions, facts."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from attnlib.checks import check_count
from attnlib.tasks.task import IGNORE, Task, TokenBatch, check_sizes, distinct, generator_from


class KeyValueStream(NamedTuple):
    """Pairs in the order in which they come; what was meant and what was written."""

    key: Float[Tensor, "B N D"]
    """Unit vectors."""
    value: Float[Tensor, "B N E"]
    """What belongs to each key: unit vectors."""
    written: Float[Tensor, "B N E"]
    """What the memory is shown: the value with noise, or something else altogether."""
    is_outlier: Bool[Tensor, "B N"]
    """Where the memory is shown something else altogether."""


def key_value_stream(
    pairs: int,
    width: int,
    *,
    value_width: int | None = None,
    streams: int = 1,
    repeats: int = 1,
    orthogonal: bool = False,
    outliers: float = 0.0,
    outlier_size: float = 10.0,
    noise: float = 0.0,
    generator: torch.Generator | int = 0,
    dtype: torch.dtype = torch.float64,
) -> KeyValueStream:
    """Random pairs of unit keys and unit values, each shown `repeats` times, round after round.

    With chance `outliers` a showing has, in place of its value, a random vector of the length
    `outlier_size`. `noise` adds a normal vector of that length (root mean square) to every showing;
    outlier_size * outliers ** 0.5 disturbs as much, in squares, as the outliers do. Keys are
    random unit vectors, or with `orthogonal` the rows of a random rotation (pairs <= width).
    Shapes: key (streams, repeats pairs, width), value and written (..., value_width).
    Raises ValueError for more orthogonal keys than `width` and numbers out of range.
    """
    value_width = width if value_width is None else value_width
    check_sizes(pairs=pairs, width=width, value_width=value_width, streams=streams, repeats=repeats)
    if not 0 <= outliers <= 1:
        raise ValueError(f"outliers must lie in 0 ... 1, got {outliers}")
    for name, size in (("outlier_size", outlier_size), ("noise", noise)):
        if not size >= 0:
            raise ValueError(f"{name} must not be negative, got {size}")
    if orthogonal and pairs > width:
        raise ValueError(f"pairs must be at most width = {width} if orthogonal, got {pairs}")
    generator = generator_from(generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    key = normalize(normal(streams, pairs, width), dim=-1)
    if orthogonal:
        key = torch.linalg.qr(normal(streams, width, width)).Q[:, :pairs]
    value = normalize(normal(streams, pairs, value_width), dim=-1)
    key, value = (part.repeat(1, repeats, 1) for part in (key, value))
    shape = (streams, repeats * pairs)
    is_outlier = torch.rand(shape, generator=generator, dtype=torch.float64) < outliers
    wild = outlier_size * normalize(normal(*shape, value_width), dim=-1)
    written = value + noise * value_width**-0.5 * normal(*shape, value_width)
    written = torch.where(is_outlier[..., None], wild, written)
    return KeyValueStream(key.to(dtype), value.to(dtype), written.to(dtype), is_outlier)


def recalled(answer: Float[Tensor, "B N E"], value: Float[Tensor, "B N E"]) -> Bool[Tensor, "B N"]:
    """Whether the value nearest to an answer, by its direction, is the right one."""
    return (answer @ value.mT).argmax(-1) == torch.arange(value.shape[-2])


@dataclass(frozen=True)
class NearAndFarRecall(Task):
    """A stream of tokens that asks for pairs just seen, and at its end for the first ones.

    k v of `far` pairs; then groups of two near pairs, k v k' v' followed by both keys in random
    order; then the far keys in random order. A filler follows every key that is asked. Near
    questions lie at most 6 tokens behind their key, far ones at least 2 + 4 `near` tokens. Keys
    are drawn without repetition, values freely. Shapes: tokens, targets (batch, `length`).
    """

    far: int = 8
    near: int = 8
    keys: int = 32
    values: int = 16

    def __post_init__(self):
        check_sizes(far=self.far, near=self.near, keys=self.keys, values=self.values)
        if self.near % 2:
            raise ValueError(f"near must be even, because pairs come in twos, got {self.near}")
        if self.keys < self.far + self.near:
            raise ValueError(
                f"keys must be at least far + near = {self.far + self.near}, got {self.keys}"
            )

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, with the filler."""
        return self.keys + self.values + 1

    @property
    def filler(self) -> int:
        """The token behind a question."""
        return self.keys + self.values

    @property
    def length(self) -> int:
        """How many tokens a stream has."""
        return 4 * self.far + 4 * self.near

    @property
    def chance(self) -> float:
        """Accuracy of guessing any value."""
        return 1 / self.values

    @property
    def is_far(self) -> Bool[Tensor, " N"]:
        """The places of the far questions."""
        place = torch.arange(self.length)
        return (place >= self.length - 2 * self.far) & (place % 2 == 0)

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Streams with one question for each pair."""
        generator = generator_from(seed)
        count = self.far + self.near
        key = distinct(size, count, self.keys, generator)
        value = torch.randint(self.values, (size, count), generator=generator) + self.keys
        pair = torch.stack((key, value), dim=-1)
        order = distinct(size, self.far, self.far, generator)
        asked_far = pair[:, : self.far].gather(1, order[..., None].expand(-1, -1, 2))
        near = pair[:, self.far :].unflatten(1, (-1, 2))  # (batch, groups, 2, 2)
        swap = torch.rand(size, self.near // 2, 1, 1, generator=generator) < 0.5
        asked_near = torch.where(swap, near.flip(2), near)

        def question(asked: Tensor) -> Tensor:
            return torch.stack((asked[..., 0], torch.full_like(asked[..., 0], self.filler)), -1)

        middle = torch.cat((near, question(asked_near)), dim=2).flatten(1)
        tokens = torch.cat(
            (pair[:, : self.far].flatten(1), middle, question(asked_far).flatten(1)), dim=1
        )

        def answer(asked: Tensor) -> Tensor:
            return torch.stack((asked[..., 1], torch.full_like(asked[..., 1], IGNORE)), -1)

        unasked = torch.full_like(near, IGNORE)
        middle = torch.cat((unasked, answer(asked_near)), dim=2).flatten(1)
        first = torch.full((size, 2 * self.far), IGNORE)
        targets = torch.cat((first, middle, answer(asked_far).flatten(1)), dim=1)
        return TokenBatch(tokens, targets)


class Questions(NamedTuple):
    """Facts in order, a question about one of them, its answer, and where that fact stood."""

    facts: Int[Tensor, "B F 2"]
    """Subject and place of each fact."""
    question: Int[Tensor, " B"]
    targets: Int[Tensor, " B"]
    place: Int[Tensor, " B"]
    """The number of the first of the facts that the answer needs."""


@dataclass(frozen=True)
class RelationalFacts(Task):
    """Who is where: facts (subject, place), and a question about a subject.

    With `hops` = 2 half of the subjects are things that somebody carries: (thing, person) and
    (person, place); the question names a thing, and its place is the answer. Every subject occurs
    in one fact, the facts come in random order. Subjects are tokens 0 ... subjects - 1, places the
    tokens behind them.
    """

    facts: int = 8
    subjects: int = 32
    places: int = 8
    hops: int = 1

    def __post_init__(self):
        check_sizes(facts=self.facts, subjects=self.subjects, places=self.places)
        if self.hops not in (1, 2):
            raise ValueError(f"hops must be 1 or 2, got {self.hops}")
        if self.facts % self.hops:
            raise ValueError(f"facts must come in {self.hops}s with hops = 2, got {self.facts}")
        if self.subjects < self.facts:
            raise ValueError(f"subjects must be at least facts = {self.facts}, got {self.subjects}")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.subjects + self.places

    @property
    def chance(self) -> float:
        """Accuracy of guessing any place."""
        return 1 / self.places

    def batch(self, size: int, seed: int | torch.Generator) -> Questions:
        """Examples with one question each; targets are places, counted from 0."""
        generator = generator_from(seed)
        stories = self.facts // self.hops
        subject = distinct(size, self.facts, self.subjects, generator)
        place = torch.randint(self.places, (size, stories), generator=generator)
        person, thing = subject[:, :stories], subject[:, stories:]
        facts = torch.stack((person, place + self.subjects), dim=-1)
        if self.hops == 2:
            facts = torch.cat((facts, torch.stack((thing, person), dim=-1)), dim=1)
        order = distinct(size, self.facts, self.facts, generator)
        place_of = order.argsort(-1)  # where fact f stands in the stream
        shuffled = facts.gather(1, order[..., None].expand(-1, -1, 2))
        asked = torch.randint(stories, (size, 1), generator=generator)
        needed = place_of.gather(1, asked)
        if self.hops == 2:
            needed = torch.minimum(needed, place_of.gather(1, asked + stories))
        named = (thing if self.hops == 2 else person).gather(1, asked)
        return Questions(shuffled, named[:, 0], place.gather(1, asked)[:, 0], needed[:, 0])


def blocking_trials(
    first: int, second: int
) -> tuple[Float[Tensor, "trials 2"], Float[Tensor, " trials"]]:
    """(present, outcome): `first` trials of cue 0 with food, then `second` of both cues with food.

    Blocking is that cue 1 learns little, because cue 0 already foretells the food. The control has
    first = 0. Source: Kamin (1969); Rescorla and Wagner (1972).
    """
    check_count("first", first)
    check_count("second", second, least=1)
    alone, both = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    present = torch.cat((alone.expand(first, 2), both.expand(second, 2))).double()
    return present, torch.ones(first + second, dtype=torch.float64)
