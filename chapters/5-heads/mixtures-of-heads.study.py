"""What small models lose when each token reads with a few of their heads, seed by seed."""

import copy
from functools import cache, lru_cache, partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from attnlib.models.language import DecoderLM
from attnlib.models.mixtures.attention_experts import MixtureOfAttentionHeads
from attnlib.models.mixtures.mixture_experiments import (
    run_branches,
    run_leave_one_out,
    run_sub_tokens,
    run_upcycle,
)
from attnlib.models.mixtures.mixture_of_heads import MixtureOfHeads
from attnlib.models.mixtures.relu_mixture import ReluMixtureOfHeads
from attnlib.models.mixtures.routed_training import (
    SteeredSparsity,
    active_heads,
    balanced,
    token_operations,
)
from attnlib.models.mixtures.summed_heads import GatedHeads, head_importance, routings
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.replaced import with_attention
from attnlib.read.head_routing import choice_information, heads_in_use, load
from attnlib.study import grid
from attnlib.tasks.grammar import Grammar
from attnlib.tasks.markov import Markov
from attnlib.tasks.word_classes import CLASSES, word_classes
from attnlib.training import classification, evaluate, train

# Every language model of the first five experiments: 2 layers, width 32, heads of width 4, rotary
# positions in the heads, 200 steps of 16 windows of 48 words at a learning rate of 0.003. All
# models of a seed see the same windows.
WIDTH, HEADS, HEAD_WIDTH, LAYERS, LENGTH, BATCH, STEPS = 32, 8, 4, 2, 48, 16, 200
TUNING = {"steps": 100, "learning_rate": 1e-3, "warmup": 10}
TEXTS = {"grammar": Grammar(length=LENGTH), "markov": Markov(length=LENGTH)}
# Of so many active heads, so many are always on; 4 of 6 as in the paper. With 2 active one head is
# routed, and its gate, divided by its own sum, is a constant: there the task gives the router no
# gradient. With 3 active two are routed.
SHARED = {6: 4, 4: 2, 3: 1, 2: 1}
PLACE = {"position": "rope", "is_causal": True}
SEEDS = range(3)
CELLS = [
    # The loss against the share of heads that are on. The frozen router is the control.
    {"experiment": "share", "form": "all", "active": 8},
    *grid(experiment=["share"], form=["fewer", "pruned", "moa", "moh", "remoh"], active=[6, 4, 2]),
    {"experiment": "share", "form": "random", "active": 6},
    # Without and with a strong balance loss; MoH and MoA with 2 active heads. The weight of the
    # papers, 0.01, is that of "share".
    *grid(experiment=["balance"], form=["moh", "moa"], weight=[0.0, 0.1]),
    # More heads to choose two from; a Markov chain needs none.
    *grid(experiment=["experts"], experts=[2, 8, 32], text=["grammar"]),
    *grid(experiment=["experts"], experts=[2, 32], text=["markov"]),
    # A trained model made to read with 6 of its 8 heads, and then tuned.
    *grid(
        experiment=["convert"],
        way=["original", "original, tuned", "converted", "converted, tuned", "scratch"],
    ),
    # ReLU gates under a fixed penalty, without and with enhancement, and under a steered one.
    *grid(experiment=["relu"], coefficient=[0.0, 1.0], enhancement=[0.0, 0.5]),
    *grid(experiment=["relu"], target=[0.25, 0.75], enhancement=[0.5]),
    # Is 200 steps too short? Chosen after the cells above were seen, before any of these was run:
    # the ends of "share" and of "experts" once more with three times the steps.
    *grid(experiment=["share"], form=["all"], active=[8], steps=[600]),
    *grid(experiment=["share"], form=["fewer", "moh", "random"], active=[2], steps=[600]),
    *grid(experiment=["share"], form=["moh"], active=[6], steps=[600]),
    *grid(experiment=["experts"], experts=[2, 8, 32], text=["grammar"], steps=[600]),
    # Chosen when a reader had found that with 2 active heads the task does not reach the router of
    # MoH, and before any of these was run: MoH with two routed heads, its controls and its balance;
    # the frozen router of MoA; and six heads that are the same for all tokens, tuned.
    *grid(experiment=["share"], form=["fewer", "moh", "random"], active=[3]),
    *grid(experiment=["balance"], form=["moh"], active=[3], weight=[0.0, 0.1]),
    *grid(experiment=["experts"], experts=[32], text=["grammar"], frozen_router=[True]),
    *grid(experiment=["convert"], way=["pruned, tuned"]),
    # The other mixtures of the chapter.
    *grid(
        experiment=["leave one out"],
        training=["plain", "joint", "block"],
        text=["grammar", "markov"],
    ),
    *grid(
        experiment=["upcycle"],
        what=["perceptrons", "shared", "all"],
        seeds=["domains", "identical"],
    ),
    *grid(experiment=["branches"], training=["none", "no penalty", "penalty 1"]),
    *grid(experiment=["sub tokens"], parts=[1, 2, 4]),
]


def run(cell: dict, seed: int) -> dict:
    """The values of one cell of one experiment."""
    experiment = cell.pop("experiment")
    runs = {
        "share": share,
        "balance": balance,
        "experts": experts,
        "convert": convert,
        "relu": relu,
        "leave one out": partial(run_leave_one_out, steps=STEPS),
        "upcycle": run_upcycle,
        "branches": run_branches,
        "sub tokens": partial(run_sub_tokens, steps=STEPS),
    }
    return runs[experiment](**cell, seed=seed)


def share(*, form: str, active: int, seed: int, steps: int | None = None) -> dict:
    """A model whose tokens read with `active` of 8 heads, in one of seven forms."""
    objective = classification
    if form in ("all", "pruned"):
        model = copy.deepcopy(all_heads(seed, steps))
        if form == "pruned":
            prune(model, active, seed)
    elif form == "fewer":
        model = trained(lambda: plain().keep_heads(range(active)), seed=seed, steps=steps)
    else:
        if form == "moa":
            make, objective = partial(attention_experts, HEADS, active), balanced(z=0.001)
        elif form == "remoh":
            routed = HEADS - SHARED[active]
            make = partial(ReluMixtureOfHeads, WIDTH, HEADS, shared=SHARED[active], **PLACE)
            objective = SteeredSparsity(1 - (active - SHARED[active]) / routed)
        else:
            make, objective = partial(mixture, active), balanced()
        frozen = form == "random"
        model = trained(make, objective=objective, seed=seed, frozen_router=frozen, steps=steps)
    return measured(model) | {"parameters": attention_parameters(model, form, active)}


def balance(*, form: str, weight: float, seed: int, active: int = 2) -> dict:
    """Routing with a balance loss of this weight; MoH and MoA with so many heads on."""
    makers = {"moh": partial(mixture, active), "moa": partial(attention_experts, HEADS, active)}
    make = makers[form]
    z = 0.001 if form == "moa" else 0.0
    start = untrained(make, seed)
    with torch.no_grad():
        start(test_batches("grammar")[0].tokens)
    in_use = worst(start, heads_in_use, min)
    model = trained(make, objective=balanced(balance=weight, z=z), seed=seed)
    return measured(model) | {"in_use_start": in_use}


def experts(
    *, experts: int, text: str, seed: int, steps: int | None = None, frozen_router: bool = False
) -> dict:
    """MoA: two of so many heads for each token."""
    make, objective = partial(attention_experts, experts, 2), balanced(z=0.001)
    model = trained(
        make, objective=objective, seed=seed, text=text, steps=steps, frozen_router=frozen_router
    )
    parameters = sum(p.numel() for p in model.blocks[0].attention.parameters())
    return measured(model, text) | {"parameters": parameters}


def convert(*, way: str, seed: int) -> dict:
    """A trained model that keeps 4 heads on and lets each token pick 2 of the other 4.

    The control keeps the 6 heads that matter most, the same for all tokens.
    """
    if way == "scratch":
        model = untrained(lambda: mixture(6), seed)
    else:
        model = copy.deepcopy(all_heads(seed))
        if way.startswith("pruned"):
            prune(model, 6, seed)
        if way.startswith("converted"):
            for block in model.blocks:
                block.attention = MixtureOfHeads.from_multi_head(
                    block.attention.attention, shared=4, active=2
                )
    objective = balanced() if way == "scratch" else classification
    if "tuned" in way or way == "scratch":
        # A text that the training has not seen.
        batches = TEXTS["grammar"].batches(BATCH, 1_000 + seed)
        train(model, batches, objective=objective, seed=seed, progress=False, **TUNING)
    return measured(model)


def relu(
    *, enhancement: float, seed: int, coefficient: float = 0.1, target: float | None = None
) -> dict:
    """ReLU gates under a penalty of fixed strength, or steered to a share of zero gates."""
    objective = SteeredSparsity(
        0.5 if target is None else target,
        coefficient=coefficient,
        rate=0.0 if target is None else 0.1,
        enhancement=enhancement,
    )
    model = trained(
        lambda: ReluMixtureOfHeads(WIDTH, HEADS, shared=2, **PLACE), objective=objective, seed=seed
    )
    values = measured(model)
    routed = sum(routing.chosen.shape[-1] for routing in routings(model))
    zeros = sum((routing.chosen == 0).double().mean() for routing in routings(model)) / LAYERS
    dead = sum(int((load(routing.chosen) == 0).sum()) for routing in routings(model))
    return values | {"zeros": float(zeros), "dead": dead / routed}


def plain() -> GatedHeads:
    """Multi-head attention with a gate of one on each head."""
    return GatedHeads(MultiHeadAttention(WIDTH, HEADS, **PLACE))


def mixture(active: int) -> MixtureOfHeads:
    """MoH with so many heads on, `SHARED` of them always."""
    shared = SHARED[active]
    return MixtureOfHeads(WIDTH, HEADS, shared=shared, active=active - shared, **PLACE)


def attention_experts(experts: int, active: int) -> MixtureOfAttentionHeads:
    """MoA with heads of the same width as everywhere."""
    return MixtureOfAttentionHeads(WIDTH, experts, active, head_width=HEAD_WIDTH, **PLACE)


def untrained(make, seed: int, text: str = "grammar") -> DecoderLM:
    """A language model with `make()` as its attention; positions are in the heads alone."""
    model = DecoderLM(
        TEXTS[text].vocabulary, width=WIDTH, heads=HEADS, layers=LAYERS, position="none", seed=seed
    )
    return with_attention(model, make, seed=seed)


def trained(
    make,
    *,
    seed: int,
    objective=classification,
    text: str = "grammar",
    frozen_router: bool = False,
    steps: int | None = None,
) -> DecoderLM:
    """A model after `STEPS` steps, unless told otherwise."""
    steps = STEPS if steps is None else steps
    model = untrained(make, seed, text)
    if frozen_router:
        for block in model.blocks:
            for part in ("to_shared", "to_routed", "to_way", "to_scores"):
                if hasattr(block.attention, part):
                    getattr(block.attention, part).requires_grad_(False)
    batches = training_batches(text, seed, steps)
    train(model, batches, steps=steps, objective=objective, seed=seed, progress=False)
    return model


@cache
def all_heads(seed: int, steps: int | None = None) -> DecoderLM:
    """Multi-head attention with all 8 heads, trained once a seed."""
    return trained(plain, seed=seed, steps=steps)


@lru_cache(maxsize=8)
def training_batches(text: str, seed: int, steps: int) -> list:
    """The windows that all models of a seed are trained on."""
    batches = TEXTS[text].batches(BATCH, seed)
    return [next(batches) for _ in range(steps)]


@cache
def test_batches(text: str) -> list:
    """Windows that no model has seen."""
    batches = TEXTS[text].batches(32, 10_000)
    return [next(batches) for _ in range(8)]


def prune(model: DecoderLM, kept: int, seed: int) -> None:
    """Leave in each layer the `kept` heads on which the loss of training windows hangs most."""
    batch = TEXTS["grammar"].batch(64, 2_000 + seed)

    def losses():
        logits = model(batch.tokens)
        return cross_entropy(logits.mT, batch.targets, reduction="none").mean(dim=-1)

    for block, importance in zip(model.blocks, head_importance(model, losses), strict=True):
        block.attention.keep_heads(importance.topk(kept).indices.tolist())


@torch.no_grad()
def measured(model: DecoderLM, text: str = "grammar") -> dict:
    """Loss above the best possible (nats a word), heads on and their operations, use, information.

    `largest_load` and `in_use` are those of the layer that is worse; `information` is the mean over
    layers of the mutual information of word class and routed head (nats).
    """
    batches = test_batches(text)
    tested = evaluate(model, batches)
    best = sum(float(-batch.probabilities.log().mean()) for batch in batches) / len(batches)
    tokens = torch.cat([batch.tokens for batch in batches])
    model(tokens)
    active = active_heads(model)
    layer = model.blocks[0].attention
    values = {
        "excess": tested.loss - best,
        "accuracy": tested.accuracy,
        "active": active,
        "operations": token_operations(layer, LENGTH // 2, active),
        "largest_load": worst(model, lambda chosen: load(chosen).max(), max),
        "in_use": worst(model, heads_in_use, min),
    }
    if text == "grammar":
        types = word_classes(tokens)
        order = torch.randperm(types.numel(), generator=torch.Generator().manual_seed(0))
        shuffled = types.flatten()[order].view_as(types)
        for name, by in (("information", types), ("information_shuffled", shuffled)):
            told = [choice_information(by, r.chosen, len(CLASSES)) for r in routings(model)]
            values[name] = sum(told) / len(told)
    return values


def worst(model: nn.Module, measure, choose) -> float:
    """The measure of the routed heads' gates in the worse of the two layers."""
    return choose(float(measure(routing.chosen)) for routing in routings(model))


def attention_parameters(model: DecoderLM, form: str, active: int) -> int:
    """Parameters of one attention layer; heads that are always off do not count."""
    count = sum(p.numel() for p in model.blocks[0].attention.parameters())
    return count * active // HEADS if form in ("fewer", "pruned") else count
