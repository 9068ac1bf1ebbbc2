"""Runs of chapter 6.1's study: spans for heads, and when to read everything.

Both start from models of two layers of four heads, rotary positions and full attention, trained on
`SparseNeed` texts of three lengths. For the spans each head is made to pay for its size, so that a
few heads do the work: without that, eight small heads share every task and none can be spared.
"""

import copy
from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor

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
from attnlib.tasks.sparse_need import NeedBatch, SparseNeed
from attnlib.training import Objective, classification, train

TASK = SparseNeed()
LENGTHS, BATCHES = (32, 64, 128), (64, 32, 16)
"""Lengths of the training texts, taken in turn, and how many of each make a batch."""
WIDTH, LAYERS, HEADS = 32, 2, 4
STEPS, TUNING_STEPS = 600, 200
JUDGED = 256
"""Texts that a model is profiled with, and other ones that it is tested with."""

PROFILED = (32, 64)
"""Lengths at which the influence of weights is measured. The spans are tested at 128 as well."""
BUDGET = 1 / 4
"""The mean span of all heads, as a share of the length."""
SINKS = 1
CANDIDATES = [Candidate(alpha, beta) for beta in (0.0, 0.25, 0.5, 0.8) for alpha in (2.0, 8.0)]
EVEN = Candidate(0.0, BUDGET)
LONG = 0.5
"""A head with at least this beta looks far."""
HEAD_PRICE = 0.003
"""Weight of the sizes of heads in the loss. Without it (seed 7) every head looks far a little."""
PENALTY = 0.3
"""Chosen by trial runs of seed 7, which the study does not use: 0.1 and 1 were the others."""


def texts(seed: int) -> Iterator[NeedBatch]:
    """Batches of 2048 tokens without end, the three lengths in turn."""
    sources = [
        TASK.at(length).batches(size, seed) for length, size in zip(LENGTHS, BATCHES, strict=True)
    ]
    while True:
        for source in sources:
            yield next(source)


def new_model(seed: int, **options) -> DecoderLM:
    """The model of both experiments, untrained; its layers decide when asked to."""
    model = DecoderLM(
        TASK.vocabulary, width=WIDTH, heads=HEADS, layers=LAYERS, position="none", seed=seed
    )
    make = partial(AllOrHere, WIDTH, HEADS, position="rope", **options)
    return with_attention(model, make, seed=seed)


@cache
def full_model(seed: int, steps: int = STEPS, price: float = 0.0) -> DecoderLM:
    """Full attention, trained once a seed; with a price on the sizes of heads."""
    model = DecoderLM(
        TASK.vocabulary, width=WIDTH, heads=HEADS, layers=LAYERS, position="rope", seed=seed
    )

    def objective(model: DecoderLM, batch: NeedBatch) -> tuple[Tensor, Tensor]:
        loss, accuracy = classification(model, batch)
        return loss + price * head_sizes(model).sum(), accuracy

    train(model, texts(seed), steps=steps, objective=objective, seed=seed, progress=False)
    return model


def head_sizes(model: DecoderLM) -> Tensor:
    """The norm of each head's value matrix plus that of its output matrix: (layers, heads)."""
    sizes = []
    for block in model.blocks:
        heads = block.attention.heads
        value = block.attention.to_value.weight.unflatten(0, (heads, -1))
        output = block.attention.to_output.weight.unflatten(1, (heads, -1))
        sizes.append(value.norm(dim=(1, 2)) + output.norm(dim=(0, 2)))
    return torch.stack(sizes)


# ---- Spans for heads: the trained model is made to look less far, and not trained again.


def run_spans(*, spans: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """The trained model's answers when its heads look back less far.

    `spans`: "full"; "uniform", a quarter of the length for every head; "mixed", found by the
    search at the same mean span or less; "exchanged", the control: the same spans, dealt out so
    that no head that looked far still does. "mixed by margin" and "exchanged by margin" are found
    with the profile of `margin` in place of the loss. Values, at each length N: `near_N` accuracy
    of answers less than a quarter of the text away, `far_N` of those at least as far (which a
    uniform span hides), `keys_N` the mean span; `long_heads`, how many heads look far; `score_long`
    and `score_rest`, the mean `retrieval_scores` of these and of the other heads (0 for no head).
    """
    model = copy.deepcopy(full_model(seed, steps, HEAD_PRICE))
    rules = {
        "full": lambda: [Candidate(0.0, 1.0)] * (LAYERS * HEADS),
        "uniform": lambda: [EVEN] * (LAYERS * HEADS),
        "mixed": lambda: searched(seed, steps),
        "exchanged": lambda: exchanged(searched(seed, steps), seed),
        "mixed by margin": lambda: searched(seed, steps, margin),
        "exchanged by margin": lambda: exchanged(searched(seed, steps, margin), seed),
    }[spans]()
    scores = retrieval_scores(model).flatten().tolist()
    of_long = [score for score, rule in zip(scores, rules, strict=True) if rule.beta >= LONG]
    of_rest = [score for score, rule in zip(scores, rules, strict=True) if rule.beta < LONG]
    values = {
        "long_heads": len(of_long),
        "score_long": sum(of_long) / max(1, len(of_long)),
        "score_rest": sum(of_rest) / max(1, len(of_rest)),
    }
    if spans != "full":
        with_operators(model, span_rules(rules, LAYERS, SINKS))
    for length in LENGTHS:
        near, far = answered(model, TASK.at(length), int(BUDGET * length))
        keys = sum(rule.span(length) for rule in rules) / len(rules)
        values |= {f"near_{length}": near, f"far_{length}": far, f"keys_{length}": keys}
    return values


@torch.no_grad()
def retrieval_scores(model: DecoderLM) -> Tensor:
    """How much weight each head of full attention gives far facts that are asked for.

    (layers, heads): the mean over questions whose fact is at least a quarter of the text away.
    """
    batch = TASK.batch(JUDGED, 9_000)
    _, weights = model(batch.tokens, return_weights=True)
    text, place = (batch.distance >= BUDGET * TASK.length).nonzero(as_tuple=True)
    return weights[:, text, :, place, place - batch.distance[text, place]].mean(0)


@torch.no_grad()
def answered(model: DecoderLM, task: SparseNeed, window: int) -> tuple[float, float]:
    """Accuracy of answers inside and outside a window of so many keys."""
    batch = task.batch(JUDGED, 9_000)
    right = model(batch.tokens).argmax(-1) == batch.targets
    asked, needs = batch.distance > 0, batch.distance >= window
    return float(right[asked & ~needs].float().mean()), float(right[needs].float().mean())


@cache
def searched(
    seed: int, steps: int = STEPS, objective: Objective = classification
) -> tuple[Candidate, ...]:
    """The spans that cost least by the profile of this seed's model."""
    budgets = {length: BUDGET * length for length in PROFILED}
    costs = profiled_costs(seed, steps, objective)
    return tuple(least_costly_spans(costs, CANDIDATES, budgets))


def profiled_costs(seed: int, steps: int = STEPS, objective: Objective = classification) -> Tensor:
    """What each candidate costs each head of this seed's model."""
    model = full_model(seed, steps, HEAD_PRICE)
    influences = {
        length: profile(model, TASK.at(length).batch(JUDGED, 5_000 + seed), objective=objective)
        for length in PROFILED
    }
    return span_costs(influences, CANDIDATES, SINKS)


def margin(model: DecoderLM, batch: NeedBatch) -> tuple[Tensor, Tensor]:
    """How far the best wrong logit lies above the right one, in the mean, and the accuracy.

    Unlike the loss it has a slope where the model is right and sure.
    """
    asked = batch.targets >= 0
    logits, right = model(batch.tokens)[asked], batch.targets[asked]
    others = logits.scatter(-1, right[:, None], -torch.inf).amax(-1)
    gap = others - logits.gather(-1, right[:, None])[:, 0]
    return gap.mean(), (gap < 0).float().mean()


def exchanged(chosen: tuple[Candidate, ...], seed: int) -> list[Candidate]:
    """The same candidates, dealt out so that no head with a long span keeps one."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(10_000):
        order = torch.randperm(len(chosen), generator=generator).tolist()
        dealt = [chosen[head] for head in order]
        pairs = zip(chosen, dealt, strict=True)
        if not any(before.beta >= LONG and after.beta >= LONG for before, after in pairs):
            return dealt
    raise ValueError("chosen must have no more heads that look far than others")


# ---- All or here: the trained model gets a router and learns when to read everything.


def run_all_or_here(
    *, form: str, window: int, seed: int, penalty: float = PENALTY, steps: int = STEPS
) -> dict[str, float]:
    """The trained model with `AllOrHere` layers, tuned further on texts of 64 tokens.

    `form`: "learned" with the usage penalty; "free", the control without; "everywhere" and "here",
    gates of one and of zero for good. Values: `usage` the share of (token, head) pairs that read
    everything; `tokens` the share of tokens that do so in any head; `precision` the share of those
    tokens whose answer lies outside the window; `recall` the share of tokens in need that do;
    `base_rate` the share of tokens in need; `accuracy` over all answers, `far` over those outside
    the window, `near` over the others.
    """
    router = form in ("learned", "free")
    start = 0.0 if form == "here" else 1.0
    model = new_model(seed, window=window, router=router, start=start)
    model.load_state_dict(full_model(seed, steps).state_dict(), strict=False)
    objective = with_usage_penalty(penalty) if form == "learned" else classification
    train(
        model,
        TASK.batches(32, 1_000 + seed),
        steps=TUNING_STEPS,
        objective=objective,
        seed=seed,
        progress=False,
    )
    return measured_need(model, window)


@torch.no_grad()
def measured_need(model: DecoderLM, window: int) -> dict[str, float]:
    """What a trained model reads and answers on texts that it has not seen."""
    batch = TASK.batch(JUDGED, 9_000)
    asked = batch.distance > 0
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
        "far": float(right[needs].float().mean()),
        "near": float(right[asked & ~needs].float().mean()),
    }
