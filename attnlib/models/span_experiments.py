"""Runs of chapter 6.1's study: spans for heads, and when to read everything."""

from functools import cache, lru_cache, partial

import torch
from torch import Tensor, nn

from attnlib.models.all_or_here import AllOrHere, decisions, with_usage_penalty
from attnlib.models.language import DecoderLM
from attnlib.models.replaced import with_attention
from attnlib.models.span_search import (
    Candidate,
    least_costly_spans,
    profile,
    span_costs,
    span_rules,
    with_operators,
)
from attnlib.read.head_spans import SpanRule
from attnlib.tasks.needle import NeedleRetrieval
from attnlib.tasks.sparse_need import SparseNeed
from attnlib.training import classification, train

# ---- Spans for heads: a trained model is made to look less far, and not trained again.

PROFILED = (32, 64)
"""Lengths at which the influence of weights is measured."""
TESTED = (64, 128, 256)
"""The last two are longer than any text of training or profile."""
BUDGET = 1 / 4
"""The mean span of all heads, as a share of the length."""
LAYERS, HEADS = 2, 4
SINKS = 1
CANDIDATES = [Candidate(alpha, beta) for beta in (0.0, 0.25, 0.5, 1.0) for alpha in (2.0, 8.0)]
EVEN = Candidate(0.0, BUDGET)


def run_spans(*, spans: str, seed: int, steps: int = 400) -> dict[str, float]:
    """Needle retrieval by a trained model whose heads look back less far.

    `spans`: "full"; "uniform", a quarter of the length for every head; "mixed", found by the
    search at the same mean span; "exchanged", the control: the same spans, dealt out to other
    heads. Values: `accuracy_N` over all needles of texts of N tokens, `far_N` over needles in the
    first half, `keys_N` the mean span a head, `whole_heads` how many heads were given beta = 1.
    """
    task, model = needle_model(seed, steps)
    kept = [block.attention.operator for block in model.blocks]
    rules = {
        "full": lambda: None,
        "uniform": lambda: [EVEN] * (LAYERS * HEADS),
        "mixed": lambda: searched(seed, steps),
        "exchanged": lambda: exchanged(searched(seed, steps), seed),
    }[spans]()
    if rules is not None:
        with_operators(model, span_rules(rules, LAYERS, SINKS))
    try:
        values = {}
        for length in TESTED:
            values |= retrieval(model, task, length)
            chosen = rules or [Candidate(0.0, 1.0)] * (LAYERS * HEADS)
            values[f"keys_{length}"] = sum(c.span(length) for c in chosen) / len(chosen)
    finally:
        with_operators(model, kept)
    whole = sum(c.beta == 1 for c in rules) if rules else LAYERS * HEADS
    return values | {"whole_heads": whole}


@cache
def needle_model(seed: int, steps: int) -> tuple[NeedleRetrieval, DecoderLM]:
    """Full attention without positions, trained on needles in texts of 64 tokens."""
    task = NeedleRetrieval(length=64)
    model = DecoderLM(
        task.vocabulary, width=64, heads=HEADS, layers=LAYERS, position="none", seed=seed
    )
    train(model, task.batches(64, seed), steps=steps, seed=seed, progress=False)
    return task, model


@cache
def searched(seed: int, steps: int) -> tuple[Candidate, ...]:
    """The spans that cost least by the profile of this seed's model."""
    costs = profiled_costs(seed, steps)
    budgets = {length: BUDGET * length for length in PROFILED}
    return tuple(least_costly_spans(costs, CANDIDATES, budgets))


def profiled_costs(seed: int, steps: int) -> Tensor:
    """What each candidate costs each head of this seed's model."""
    task, model = needle_model(seed, steps)
    influences = {
        length: profile(model, task.at(length).batch(256, 5_000 + seed)) for length in PROFILED
    }
    return span_costs(influences, CANDIDATES, SINKS)


def exchanged(chosen: tuple[Candidate, ...], seed: int) -> list[Candidate]:
    """The same candidates, dealt out so that no head with the longest span keeps it."""
    longest = max(chosen, key=lambda c: c.span(TESTED[-1]))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(1000):
        order = torch.randperm(len(chosen), generator=generator).tolist()
        dealt = [chosen[head] for head in order]
        if not any(a == b == longest for a, b in zip(chosen, dealt, strict=True)):
            return dealt
    raise ValueError("chosen must leave room to exchange its longest spans")


@torch.no_grad()
def retrieval(model: DecoderLM, task: NeedleRetrieval, length: int) -> dict[str, float]:
    """Accuracy of texts of this length, of needles anywhere and of those in the first half."""
    batch = task.at(length).batch(256, 9_000)
    asked = batch.targets >= 0
    answers = model(batch.tokens).argmax(-1)[asked]
    right = (answers == batch.targets[asked]).float().view(len(batch.tokens), -1)
    key = batch.tokens[asked].view(right.shape) - task.keys * task.values
    is_key = batch.tokens.unsqueeze(1) // task.values == key.unsqueeze(-1)  # (batch, questions, N)
    place = is_key.int().argmax(-1)
    far = place < length // 2
    return {
        f"accuracy_{length}": float(right.mean()),
        f"far_{length}": float(right[far].mean()),
    }


# ---- All or here: a model that learns when to read everything.

NEED = SparseNeed()
PENALTY = 0.3


def run_all_or_here(
    *, form: str, window: int, seed: int, steps: int = 500, penalty: float = PENALTY
) -> dict[str, float]:
    """Texts of which few tokens need distant context, read by `AllOrHere` layers.

    `form`: "learned" with the penalty; "free", the control without one; "everywhere" and "here",
    gates of one and of zero for good. Values: `usage` the share of (token, head) pairs that read
    everything; `tokens` the share of tokens that do so in any head; `precision` the share of those
    tokens whose answer lies outside the window; `recall` the share of the tokens in need that do;
    `base_rate` the share of tokens in need; `accuracy` over all answers, `far` over those outside
    the window, `near` over the others.
    """
    model = DecoderLM(
        NEED.vocabulary, width=64, heads=HEADS, layers=LAYERS, position="none", seed=seed
    )
    router = form in ("learned", "free")
    make = partial(
        AllOrHere,
        64,
        HEADS,
        window=window,
        position="rope",
        router=router,
        start=0.0 if form == "here" else 1.0,
    )
    model = with_attention(model, make, seed=seed)
    objective = with_usage_penalty(penalty) if form == "learned" else need_objective
    batches = need_batches(seed, steps)
    train(model, batches, steps=steps, objective=objective, seed=seed, progress=False)
    return measured_need(model, window)


def need_objective(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The plain loss, whatever the batch holds besides tokens and targets."""
    return classification(model, batch)


@lru_cache(maxsize=2)
def need_batches(seed: int, steps: int) -> list:
    """The texts that all models of a seed are trained on."""
    batches = NEED.batches(32, seed)
    return [next(batches) for _ in range(steps)]


@torch.no_grad()
def measured_need(model: DecoderLM, window: int) -> dict[str, float]:
    """What a trained model reads and answers on texts that it has not seen."""
    batch = NEED.batch(256, 9_000)
    asked = batch.targets >= 0
    right = model(batch.tokens).argmax(-1) == batch.targets
    gates = decisions(model)
    fires = (gates > 0.5).any(-1).any(0)
    needs = batch.distance >= window
    return {
        "usage": float(gates.mean()),
        "tokens": float(fires.float().mean()),
        "precision": float(needs[fires].float().mean()) if fires.any() else 0.0,
        "recall": float(fires[needs].float().mean()),
        "base_rate": float(needs.float().mean()),
        "accuracy": float(right[asked].float().mean()),
        "far": float(right[asked & needs].float().mean()),
        "near": float(right[asked & ~needs].float().mean()),
    }


def rules_of(seed: int, steps: int = 400) -> list[SpanRule]:
    """The rules that the search found for a seed's model, layer by layer."""
    return span_rules(searched(seed, steps), LAYERS, SINKS)
