"""Working memory with few slots, long-term memory as a sum of outer products, and the two read."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_count
from attnlib.models.attention_layer import projection


class TwoMemories(NamedTuple):
    """What is kept between segments: both constant in size."""

    working: Float[Tensor, "batch slots width"]
    long_term: Float[Tensor, "batch width width"]


def top_weights(scores: Float[Tensor, "*batch M P"], top: int) -> Float[Tensor, "*batch M P"]:
    """Softmax over the `top` largest scores of a row; all others weigh exactly nothing."""
    check_count("top", top, least=1)
    if top < scores.shape[-1]:
        least = scores.topk(top, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    return scores.softmax(dim=-1)


class WorkingMemory(nn.Module):
    r"""Slots that inputs compete for, consolidated by outer products, and read together.

    .. math:: u = \mathrm{top}_k(M W^Q (P W^K)^\top) P W^V, \quad
              M' = f \odot M + g \odot \tanh u

    .. math:: L' = \gamma L + \textstyle\sum_m \phi_m \psi_m^\top, \quad
              U = \alpha \odot U_{work} + (1 - \alpha) \odot U_{long}

    `write` lets each slot take the `top` inputs P of a segment that fit it best, with gates f and g
    made of slot and input. `consolidate` adds the outer products of the slots' keys and values to
    the long-term memory, which fades by a learnt gamma. `infer` reads the slots by attention and
    the long-term memory by its matrix, and mixes both. Shapes: perceived (batch, P, width),
    questions (batch, N, width). State: slots * width + width^2 numbers for each sequence.
    Cost: slots P width for a write, width^2 (slots + N) for the long-term memory.
    Raises ValueError for a memory that is read before it was written (state None).
    Source: Zeng et al. (2023), PMI; there several heads, several long-term fragments and a longer
    inference. Chapter 7.2.
    """

    def __init__(self, width: int, slots: int, *, top: int = 1):
        super().__init__()
        for name, number in (("width", width), ("slots", slots), ("top", top)):
            check_count(name, number, least=1)
        self.width, self.slots, self.top = width, slots, top
        self.first_slots = nn.Parameter(torch.randn(slots, width))
        self.slot_query, self.input_key, self.input_value = (
            projection(width, width) for _ in range(3)
        )
        self.gates = nn.Linear(2 * width, 2 * width)
        self.long_key, self.long_value = (projection(width, width) for _ in range(2))
        self.log_odds_kept = nn.Parameter(torch.tensor(4.0))
        self.read_query, self.read_key, self.read_value = (
            projection(width, width) for _ in range(3)
        )
        self.long_query, self.to_share = projection(width, width), nn.Linear(width, width)

    def start(self, batch: int) -> TwoMemories:
        """The learnt slots and an empty long-term memory."""
        empty = self.first_slots.new_zeros(batch, self.width, self.width)
        return TwoMemories(self.first_slots.expand(batch, -1, -1), empty)

    def write(
        self, state: TwoMemories, perceived: Float[Tensor, "batch P width"]
    ) -> tuple[TwoMemories, Float[Tensor, "batch slots P"]]:
        """(the state with new slots, which inputs each slot took)."""
        working = state.working
        scores = self.slot_query(working) @ self.input_key(perceived).mT * self.width**-0.5
        weights = top_weights(scores, self.top)
        update = (weights @ self.input_value(perceived)).tanh()
        keep, take = self.gates(torch.cat((working, update), dim=-1)).sigmoid().chunk(2, dim=-1)
        return state._replace(working=keep * working + take * update), weights

    def consolidate(self, state: TwoMemories) -> TwoMemories:
        """The state whose long-term memory has faded and taken in the slots."""
        key = normalize(self.long_key(state.working), dim=-1)
        added = key.mT @ self.long_value(state.working)
        return state._replace(long_term=self.log_odds_kept.sigmoid() * state.long_term + added)

    def infer(
        self, state: TwoMemories | None, question: Float[Tensor, "batch N width"]
    ) -> Float[Tensor, "batch N width"]:
        """What both memories say to the questions, mixed channel by channel."""
        check_written(state)
        share = self.to_share(question).sigmoid()
        long_term = normalize(self.long_query(question), dim=-1) @ state.long_term
        return share * self.infer_from_working(state, question) + (1 - share) * long_term

    def infer_from_working(
        self, state: TwoMemories | None, question: Float[Tensor, "batch N width"]
    ) -> Float[Tensor, "batch N width"]:
        """What the slots alone say: attention over them."""
        check_written(state)
        scores = self.read_query(question) @ self.read_key(state.working).mT * self.width**-0.5
        return scores.softmax(dim=-1) @ self.read_value(state.working)


def check_written(state: TwoMemories | None) -> None:
    """Raise ValueError for a memory that nothing was written to."""
    if state is None:
        raise ValueError("state must be what start or write returned, got None: write first")


@mechanism(
    key="pmi-working-longterm-memory",
    paper="pmi-working-longterm-memory",
    chapter="7-memory/test-time-memory",
    section="working-and-long-term",
    step="memory",
    idea="few slots that inputs compete for, and a matrix into which the slots are consolidated",
    equation=(
        r"L' = \gamma L + \sum_m \phi_m \psi_m^\top,"
        r" \; U = \alpha U_{work} + (1 - \alpha) U_{long}"
    ),
    cost="slots P width a write, width^2 (slots + N) long-term; state slots width + width^2",
    promises=None,
    taxonomy=Taxonomy("distinctive", "multi", "hard", "single"),
)
def two_memory_read(
    memory: WorkingMemory,
    segments: list[Float[Tensor, "batch P width"]],
    question: Float[Tensor, "batch N width"],
) -> Float[Tensor, "batch N width"]:
    """Write and consolidate segment after segment, then answer the questions."""
    state = memory.start(question.shape[0]) if segments else None
    for perceived in segments:
        state, _ = memory.write(state, perceived)
        state = memory.consolidate(state)
    return memory.infer(state, question)


class FactReader(nn.Module):
    """Answers questions about facts that come in segments; what it keeps of them is its `memory`.

    A fact is one vector, made of its two tokens. Every reader attends from the question to the
    facts of the last segment. "none" keeps nothing else; "working" adds what the slots say;
    "both" adds the long-term memory too. All have the same parameters; "none" and "working" leave
    some without effect. `rounds` is how often the question is refined.
    Shapes: facts (batch, F, 2), question (batch) of tokens -> logits (batch, places).
    """

    def __init__(
        self,
        vocabulary: int,
        places: int,
        *,
        memory: str,
        width: int = 64,
        slots: int = 4,
        segment: int = 2,
        top: int = 1,
        rounds: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        if memory not in ("none", "working", "both"):
            raise ValueError(f"memory must be none, working or both, got {memory!r}")
        for name, number in (("segment", segment), ("rounds", rounds)):
            check_count(name, number, least=1)
        self.reads, self.segment, self.rounds = memory, segment, rounds
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            self.to_fact = nn.Sequential(
                nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
            )
            self.memory = WorkingMemory(width, slots, top=top)
            self.query, self.key, self.value = (projection(width, width) for _ in range(3))
            self.norm = nn.LayerNorm(width)
            self.think = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
            )
            self.to_logits = nn.Linear(width, places)

    def forward(
        self, facts: Int[Tensor, "batch F 2"], question: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch places"]:
        """Logits over the places."""
        fact = self.to_fact(self.embedding(facts).flatten(-2))
        state = self.remembered(fact)
        last = fact[:, -self.segment :]
        x = self.embedding(question)[:, None]
        for _ in range(self.rounds):
            asked = self.norm(x)
            scores = self.query(asked) @ self.key(last).mT * fact.shape[-1] ** -0.5
            x = x + scores.softmax(dim=-1) @ self.value(last)
            if self.reads == "both":
                x = x + self.memory.infer(state, asked)
            elif self.reads == "working":
                x = x + self.memory.infer_from_working(state, asked)
            x = x + self.think(x)
        return self.to_logits(x[:, 0])

    def remembered(self, fact: Float[Tensor, "batch F width"]) -> TwoMemories:
        """The two memories after all segments."""
        state = self.memory.start(fact.shape[0])
        for perceived in fact.split(self.segment, dim=1):
            state, _ = self.memory.write(state, perceived)
            state = self.memory.consolidate(state)
        return state


def answers(model: FactReader, batch) -> tuple[Tensor, Tensor]:
    """An objective for `attnlib.training`: cross-entropy and accuracy of the places."""
    logits = model(batch.facts, batch.question)
    accuracy = (logits.argmax(-1) == batch.targets).float().mean()
    return nn.functional.cross_entropy(logits, batch.targets), accuracy
