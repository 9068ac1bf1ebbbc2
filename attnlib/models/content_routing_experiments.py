"""Runs of chapter 6.1 that are too long for its page: supports chosen by content and by place.

Each function is one run with one seed and gives numbers by name. What differs between two runs of
a kind is the support alone: the same trained model, the same sequences, as many pairs.
"""

import copy
from collections.abc import Callable
from functools import cache, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.attend import attend
from attnlib.choices import check_choice
from attnlib.models.grouped_tokens import BalancedGroups, MixtureOfGroups
from attnlib.models.language import DecoderLM
from attnlib.patterns import contiguous_blocks
from attnlib.read.heads import split_heads
from attnlib.read.mixture_of_groups import dense_mixture_of_groups, groups_of
from attnlib.read.routing_attention import RoutingAttention, taken_table
from attnlib.read.spherical_k_means import moved_centroids, on_sphere
from attnlib.support import dense, window
from attnlib.tasks.planted_clusters import NoisyClusters, PlantedClusters
from attnlib.tasks.task import Task
from attnlib.training import evaluate, train
from attnlib.weight.softmax_attention import softmax_attention

HELD_OUT = 10_000
"""The seed of what is measured on; no training draws from it."""

LENGTH, KINDS, WIDTH, HEADS, STEPS = 64, 8, 64, 2, 500
PER_QUERY = LENGTH // KINDS
"""Keys a query may read under every sparse support: as many as its kind has tokens."""


def attend_on_sphere(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    support: Callable[..., Tensor] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """What `routing_attention` reads if every token may be read: queries serve as keys."""
    shared = on_sphere(query)
    return attend(shared, shared, value, support=support, is_causal=is_causal)


def planted(arrangement: str) -> PlantedClusters:
    """The task: 8 kinds of 8 tokens, of which 3 show the value of their kind."""
    return PlantedClusters(length=LENGTH, kinds=KINDS, shown=3, arrangement=arrangement)


def one_layer(task: Task, operator: Callable[..., Tensor], seed: int) -> DecoderLM:
    """A decoder of one layer without positions, trained on a task."""
    model = DecoderLM(
        task.vocabulary,
        width=WIDTH,
        heads=HEADS,
        layers=1,
        operator=operator,
        position="none",
        seed=seed,
    )
    train(model, task.batches(16, seed), steps=STEPS, seed=seed, progress=False)
    return model.eval()


@cache
def full_model(arrangement: str, seed: int) -> DecoderLM:
    """Trained with all keys, queries serving as keys."""
    return one_layer(planted(arrangement), attend_on_sphere, seed)


def queries_of(model: DecoderLM, tokens: Tensor) -> Float[Tensor, "batch heads N D"]:
    """The queries of the one layer."""
    block = model.blocks[0]
    x = block.attention_norm(model.position(model.embedding(tokens)))
    return split_heads(block.attention.to_query(x), block.attention.heads)


@torch.no_grad()
def fitted_routing(
    model: DecoderLM, arrangement: str, seed: int, clusters: int = KINDS
) -> RoutingAttention:
    """Routing whose centroids have followed the queries of a trained model for 30 batches.

    The clusters are as large as they can be while all tokens have room in them once.
    """
    operator = RoutingAttention(
        WIDTH // HEADS, heads=HEADS, groups=clusters, top_k=LENGTH // clusters
    )
    batches = planted(arrangement).batches(16, seed)
    operator.start_at(queries_of(model, next(batches).tokens))
    for _ in range(30):
        query = queries_of(model, next(batches).tokens)
        operator.centroids = moved_centroids(operator.centroids, query, decay=0.8)
    return operator.eval()


def with_operator(model: DecoderLM, operator: Callable[..., Tensor]) -> DecoderLM:
    """A copy of a one-layer model that reads by another operator."""
    model = copy.deepcopy(model)
    model.blocks[0].attention.operator = operator
    return model.eval()


def accuracy_of(model: DecoderLM, task: Task) -> float:
    """The share of right answers on held-out sequences."""
    return evaluate(model, task.batches(64, HELD_OUT), count=4).accuracy


SUPPORTS = ("full", "routed", "window", "same kind", "4 clusters", "16 clusters")


@torch.no_grad()
def run_kept_mass(*, support: str, data: str, seed: int) -> dict:
    """What a support keeps of a trained model's reading: one model, several supports.

    `support` is "full" (every earlier key), "routed" (8 centroids that take 8 tokens each),
    "4 clusters" of 16 or "16 clusters" of 4 tokens, "window" (the last 8 keys) or "same kind" (the
    planted clusters themselves); `data` is "interleaved" or "contiguous". Values: mass, the share
    kept of the weight that full attention gives to keys of the query's own kind, mean over
    questions; pairs, the pairs of a sequence that a head may read, no key later than its query;
    recall, the accuracy of the model with its weights as they are and this support in place of the
    full one.
    """
    check_choice("support", support, SUPPORTS)
    with torch.enable_grad():
        model = full_model(data, seed)
    task = planted(data)
    tokens, _ = task.batch(64, HELD_OUT)
    kind = task.kind_of(tokens)
    same_kind = (kind[:, None, :, None] == kind[:, None, None, :]).expand(-1, HEADS, -1, -1)
    if support == "full":
        allowed, operator = torch.ones_like(same_kind), attend_on_sphere
    elif support == "window":
        allowed = dense(window(PER_QUERY), LENGTH, LENGTH).expand_as(same_kind)
        operator = partial(attend_on_sphere, support=window(PER_QUERY))
    elif support == "same kind":
        allowed, operator = same_kind, None
    else:
        clusters = KINDS if support == "routed" else int(support.removesuffix(" clusters"))
        operator = fitted_routing(model, data, seed, clusters)
        taken = taken_table(queries_of(model, tokens), operator.centroids, LENGTH // clusters)
        allowed = (taken[..., :, None] & taken[..., None, :]).any(-3)
    return {
        "mass": kept_mass(model, tokens, same_kind, allowed, ~task.shows(tokens)),
        "pairs": causal_pairs(allowed).mean().item(),
        "recall": (
            same_kind_accuracy(model, task)
            if operator is None
            else accuracy_of(with_operator(model, operator), task)
        ),
    }


def causal_pairs(allowed: Bool[Tensor, "*batch N N"]) -> Float[Tensor, "*batch"]:
    """How many pairs of a support have no key later than its query."""
    return allowed.tril().double().sum((-2, -1))


def kept_mass(
    model: DecoderLM,
    tokens: Tensor,
    wanted: Bool[Tensor, "batch heads N N"],
    allowed: Bool[Tensor, "batch heads N N"],
    asks: Bool[Tensor, "batch N"],
) -> float:
    """The share of full attention's weight on the wanted keys that lies in a support."""
    _, weights = model(tokens, return_weights=True)
    weights = weights[0] * wanted
    share = (weights * allowed).sum(-1) / weights.sum(-1)
    return share.transpose(1, 2)[asks].mean().item()


def same_kind_accuracy(model: DecoderLM, task: PlantedClusters) -> float:
    """The accuracy of a model whose queries read the keys of their own kind alone."""
    right = []
    for tokens, targets in (task.batch(64, HELD_OUT + step) for step in range(4)):
        kind = task.kind_of(tokens)
        same = partial(
            attend_on_sphere, support=lambda b, h, i, j, kind=kind: kind[b, i] == kind[b, j]
        )
        asked = ~task.shows(tokens)
        answers = with_operator(model, same)(tokens).argmax(-1)
        right.append((answers == targets)[asked].double().mean().item())
    return sum(right) / len(right)


def run_trained_recall(*, support: str, data: str, seed: int) -> dict:
    """The accuracy of models that were trained with their support: "full", "routed" or "window".

    "routed" learns its centroids while it trains (decay 0.9). As many pairs as in `run_kept_mass`.
    """
    check_choice("support", support, ("full", "routed", "window"))
    if support == "full":
        return {"accuracy": accuracy_of(full_model(data, seed), planted(data))}
    operator: Callable[..., Tensor] | nn.Module = partial(
        attend_on_sphere, support=window(PER_QUERY)
    )
    if support == "routed":
        operator = RoutingAttention(
            WIDTH // HEADS, heads=HEADS, groups=KINDS, top_k=PER_QUERY, decay=0.9, seed=seed
        )
    return {"accuracy": accuracy_of(one_layer(planted(data), operator, seed), planted(data))}


GROUPS, ROUTER_STEPS = 4, 800
"""Groups of the router, half as many as there are kinds, and steps of its training."""


def noisy(arrangement: str) -> NoisyClusters:
    """The task of the groups: every token shows the value of its kind, half of them wrongly."""
    return NoisyClusters(length=LENGTH, kinds=KINDS, arrangement=arrangement)


@cache
def plain_model(arrangement: str, seed: int) -> DecoderLM:
    """Trained with plain softmax attention to all earlier keys."""
    return one_layer(noisy(arrangement), softmax_attention, seed)


@cache
def grouped_model(arrangement: str, seed: int, router: str) -> DecoderLM:
    """The plain model with a router of 4 groups put in.

    `router` is "learned" (all is trained on for 800 steps with the balance loss), "frozen" (the
    same, but the router stays as it began) or "random" (nothing is trained on).
    """
    model = copy.deepcopy(plain_model(arrangement, seed))
    attention = model.blocks[0].attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.blocks[0].attention = MixtureOfGroups(
            attention, GROUPS, operator=dense_mixture_of_groups
        )
    if router == "random":
        return model.eval()
    model.blocks[0].attention.to_route.requires_grad_(router == "learned")
    return trained_on(model, arrangement, seed)


@cache
def longer_model(arrangement: str, seed: int) -> DecoderLM:
    """The plain model trained on with all keys for as many steps as the groups."""
    return trained_on(copy.deepcopy(plain_model(arrangement, seed)), arrangement, seed)


def trained_on(model: DecoderLM, arrangement: str, seed: int) -> DecoderLM:
    """The model after 800 further steps; the balance loss is zero where there is no router."""
    train(
        model,
        noisy(arrangement).batches(16, seed + 1),
        steps=ROUTER_STEPS,
        learning_rate=1e-2,
        objective=BalancedGroups(balance=0.1),
        seed=seed,
        progress=False,
    )
    return model.eval()


@torch.no_grad()
def run_group_mass(*, support: str, data: str, seed: int) -> dict:
    """How much of a trained model's weight stays inside groups, and inside contiguous blocks.

    `support` is "routed" (a router of 4 groups, trained with the model for 800 steps),
    "random" (the same router, untrained) or "blocks" (contiguous blocks with at least as many pairs
    as "routed"); `data` is "interleaved" or "contiguous". Values: mass, of the
    weight that full attention gives to tokens other than the query's own, the share that lies in
    the support, mean over the queries of the second half; pairs, the pairs of a sequence that
    have no key later than its query.
    """
    check_choice("support", support, ("routed", "random", "blocks"))
    task = noisy(data)
    tokens, _ = task.batch(64, HELD_OUT)
    with torch.enable_grad():
        plain = plain_model(data, seed)
        grouped = grouped_model(data, seed, "random" if support == "random" else "learned")
    allowed = same_group(grouped, tokens)
    if support == "blocks":
        pairs = causal_pairs(allowed[:, 0]).mean().item()
        allowed = dense(contiguous_blocks(size_for(pairs)), LENGTH, LENGTH).expand_as(allowed)
    late = torch.arange(LENGTH).expand_as(tokens) >= LENGTH // 2
    others = ~torch.eye(LENGTH, dtype=torch.bool).expand_as(allowed)
    return {
        "mass": kept_mass(plain, tokens, others, allowed, late),
        "pairs": causal_pairs(allowed).mean().item(),
    }


def same_group(model: DecoderLM, tokens: Tensor) -> Bool[Tensor, "batch heads N N"]:
    """Which pairs of tokens the router of a one-layer model puts into one group."""
    block = model.blocks[0]
    x = block.attention_norm(model.position(model.embedding(tokens)))
    group = groups_of(block.attention.routes(x)).expand(-1, HEADS, -1)
    return group[..., :, None] == group[..., None, :]


def size_for(pairs: float) -> int:
    """The smallest size of contiguous blocks with at least so many causal pairs."""
    return next(
        size
        for size in range(1, LENGTH + 1)
        if causal_pairs(dense(contiguous_blocks(size), LENGTH, LENGTH)) >= pairs
    )


def run_group_accuracy(*, support: str, data: str, seed: int) -> dict:
    """The accuracy of one model of 500 steps, and of three that were trained on from it alike.

    `support` is "start" (the model itself), or what it read in 800 further steps: "full" (all
    keys), "routed" (groups of a router that learns too) or "random" (groups of a frozen router).
    """
    models = {
        "start": plain_model,
        "full": longer_model,
        "routed": partial(grouped_model, router="learned"),
        "random": partial(grouped_model, router="frozen"),
    }
    check_choice("support", support, tuple(models))
    return {"accuracy": accuracy_of(models[support](data, seed), noisy(data))}
