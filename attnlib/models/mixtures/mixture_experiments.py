"""Runs of chapter 5.2 that are too long for its page: what is trained, what is measured.

Each function is one run with one seed. Runs of one kind differ in one thing only.
"""

import copy
from functools import cache, partial

import torch
from torch import nn

from attnlib.choices import check_choice
from attnlib.models.language import DecoderLM
from attnlib.models.mixtures.branch_attend_mix import (
    upcycle_all,
    upcycle_perceptrons,
    upcycle_shared_keys,
    with_parallel_blocks,
)
from attnlib.models.mixtures.branches import forced, personal_loss, personalized, routed
from attnlib.models.mixtures.leave_one_out import (
    MixtureOfAllButOne,
    expert_use,
    train_in_blocks,
    watch_gates,
)
from attnlib.models.mixtures.sub_token_experts import watch_sub_gates, with_sub_token_experts
from attnlib.models.replaced import with_attention
from attnlib.models.scene_denoiser import SceneDenoiser, draw, noisy_scenes, patch_masks, scene_loss
from attnlib.read.branches import overlap
from attnlib.tasks.grammar import Grammar
from attnlib.tasks.markov import Markov
from attnlib.tasks.scenes import Scenes
from attnlib.tasks.task import Task
from attnlib.tasks.text_domains import TextDomains
from attnlib.training import evaluate, train

HELD_OUT = 10_000
"""The seed of what is measured on; no training draws from it."""

TEXTS = {
    "grammar": Grammar(length=48),
    "markov": Markov(length=48),
    "domains": TextDomains(length=48),
}


def run_leave_one_out(*, training: str, text: str, seed: int, steps: int = 300) -> dict:
    """A language model whose layers are all heads (plain) or mixtures of all heads but one.

    `training` is "plain" (multi-head attention), "joint" (gates and experts in every step) or
    "block" (in turns). Two layers of 8 heads, width 32, rotary positions; as many batches each.
    """
    check_choice("training", training, ("plain", "joint", "block"))
    task = _text(text)
    model = DecoderLM(task.vocabulary, width=32, heads=8, layers=2, position="rope", seed=seed)
    if training != "plain":
        layer = partial(MixtureOfAllButOne, 32, 8, position="rope", is_causal=True)
        # the heads of all three start alike
        plain = copy.deepcopy(model)
        with_attention(model, layer, seed=seed)
        model.load_state_dict(plain.state_dict(), strict=False)
    learn = train_in_blocks if training == "block" else partial(train, progress=False)
    learn(model, task.batches(16, seed), steps=steps, seed=seed)
    values = {"excess": excess(model, task), "parameters": parameters(model)}
    if training != "plain":
        gates = watch_gates(model, task.batch(64, HELD_OUT).tokens)
        uses = [expert_use(layer) for layer in gates]
        values |= {
            "entropy": sum(use.conditional for use in uses) / len(uses),
            "spread": sum(use.marginal for use in uses) / len(uses),
            "information": sum(use.information for use in uses) / len(uses),
            "largest": max(use.largest for use in uses),
        }
    return values


WAYS = {"perceptrons": upcycle_perceptrons, "shared": upcycle_shared_keys, "all": upcycle_all}


def run_upcycle(*, what: str, seeds: str, seed: int, steps: int = 150) -> dict:
    """Three dense models become one mixture, which then learns from all domains.

    `what` are the experts: "perceptrons", "shared" (queries and outputs of attention as well) or
    "all" (whole attention layers as well). `seeds` are the dense models, branches of one model that
    learnt all domains for `steps` steps: "domains" (each learnt one domain for `steps` more),
    "tables" (the same, but the domains look one word back alike) or "identical" (one branch that
    learnt all domains for 3 `steps` more, three times). Losses are in nats a word, on all domains;
    `own` is that of each dense model on its own domain.
    """
    check_choice("what", what, tuple(WAYS))
    task, dense = dense_seeds(seeds, seed, steps)
    model = WAYS[what](dense, seed=seed)
    values = {
        "start": held_out_loss(model, task),
        "dense": sum(held_out_loss(one, task) for one in dense) / len(dense),
        "own": sum(held_out_loss(one, task.of(d)) for d, one in enumerate(dense)) / len(dense),
        "parameters": parameters(model),
    }
    train(model, task.batches(16, seed + 500), steps=steps, progress=False, seed=seed)
    return values | {"end": held_out_loss(model, task), "excess": excess(model, task)}


@cache
def dense_seeds(seeds: str, seed: int, steps: int) -> tuple[TextDomains, list[DecoderLM]]:
    """The task and the three dense models of `run_upcycle`."""
    check_choice("seeds", seeds, ("domains", "tables", "identical"))
    task = TextDomains(length=32, distances=(1, 1, 1) if seeds == "tables" else (1, 2, 3))
    base = DecoderLM(task.vocabulary, width=32, heads=2, layers=2, position="rope", seed=seed)
    with_parallel_blocks(base)
    train(base, task.batches(16, seed), steps=steps, learning_rate=5e-3, progress=False)
    if seeds == "identical":
        train(base, task.batches(16, seed + 100), steps=3 * steps, progress=False)
        return task, [base] * 3
    dense = [copy.deepcopy(base) for _ in range(3)]
    for domain, model in enumerate(dense):
        batches = task.of(domain).batches(16, seed + 100 * (domain + 1))
        train(model, batches, steps=steps, progress=False)
    return task, dense


PENALTIES = {"none": None, "no penalty": 0.0, "penalty 1": 1.0, "penalty 10": 10.0}


def run_branches(*, training: str, seed: int, prior_steps: int = 600, steps: int = 150) -> dict:
    """A scene denoiser gets personal branches, which learn a striped subject from night scenes.

    `training` says how strongly the routers are held to the prior on the background; with "none"
    nothing is learnt. Measured on 64 scenes of all four grounds, drawn from noise: changes are mean
    absolute differences of pixels between the personal model and its own prior, from the same
    noise. The map is the routers' mean over layers in the last step of drawing; `overlap` compares
    its highest patches, as many as the subject has, with the subject's, `overlap_other` with those
    of the other object; `overlap_half` compares the patches above one half with the subject's.
    """
    check_choice("training", training, tuple(PENALTIES))
    weight = PENALTIES[training]
    model = personalized(scene_prior(seed, prior_steps), seed=seed)
    if weight is not None:
        batches = noisy_scenes(Scenes(personal=True, ground="night"), 16, seed + 100)
        objective = partial(personal_loss, weight=weight)
        train(model, batches, steps=steps, objective=objective, progress=False)
    scenes = Scenes(personal=True).batch(64, HELD_OUT)
    noise = torch.randn(
        scenes.images.shape, generator=torch.Generator().manual_seed(HELD_OUT + seed)
    )
    with forced(model, 0):
        before = draw(model, scenes.words, noise)
    after = draw(model, scenes.words, noise)
    personal = routed(model).mean(0)[..., 1].detach()
    subject, other = (patch_masks(scenes.masks[:, place]) >= 0.5 for place in (0, 1))
    change = (after - before).abs().mean(1)
    return {
        "overlap": float(overlap(highest(personal, subject.sum(1)), subject)),
        "overlap_half": float(overlap(personal > 0.5, subject)),
        "overlap_other": float(overlap(highest(personal, other.sum(1)), other)),
        "background": float(change[~scenes.masks.any(1)].mean()),
        "other": float(change[scenes.masks[:, 1]].mean()),
        "subject": float(change[scenes.masks[:, 0]].mean()),
        "error": float((after - scenes.images).abs().mean(1)[scenes.masks[:, 0]].mean()),
        "error_prior": float((before - scenes.images).abs().mean(1)[scenes.masks[:, 0]].mean()),
    }


@cache
def scene_prior(seed: int, steps: int = 600) -> SceneDenoiser:
    """A denoiser that draws scenes from words and knows no subject."""
    model = SceneDenoiser(seed=seed)
    batches = noisy_scenes(Scenes(), 16, seed)
    train(model, batches, steps=steps, learning_rate=5e-3, objective=scene_loss, progress=False)
    return model


def run_sub_tokens(*, parts: int, seed: int, text: str = "grammar", steps: int = 300) -> dict:
    """A language model whose perceptrons are 8 experts, one of them for each part of a token.

    `operations` are the multiplications of the chosen experts for a token, the same for all
    `parts`; `parameters` are not. `in_use` is exp of the entropy of the load: how many experts do
    the work; `largest` the share of the busiest; both are means over the layers. No loss balances
    the load.
    """
    task, experts, hidden, width = _text(text), 8, 64, 32
    model = DecoderLM(task.vocabulary, width=width, heads=8, layers=2, position="rope", seed=seed)
    with_sub_token_experts(model, experts, parts=parts, hidden=hidden, seed=seed)
    train(model, task.batches(16, seed), steps=steps, progress=False, seed=seed)
    gates = watch_sub_gates(model, task.batch(64, HELD_OUT).tokens)
    loads = [(layer > 0).double().mean((0, 1)) for layer in gates]
    entropies = [float(torch.special.entr(load).sum()) for load in loads]
    return {
        "excess": excess(model, task),
        "in_use": float(torch.tensor(entropies).exp().mean()),
        "largest": float(torch.stack(loads).amax(1).mean()),
        "parameters": parameters(model),
        "operations": 2 * hidden * width,
    }


def highest(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """In each row, True at the largest values, as many as `counts` says."""
    ranks = values.argsort(-1, descending=True).argsort(-1)
    return ranks < counts[:, None]


def held_out_loss(model: nn.Module, task: Task) -> float:
    """Nats a word on text that no training draws."""
    return evaluate(model, task.batches(64, HELD_OUT), count=4).loss


def excess(model: nn.Module, task: Task) -> float:
    """How far the loss lies above that of a reader who knows how the text is made (nats a word)."""
    batches, lengths = task.batches(64, HELD_OUT), 4
    best = [float(-next(batches).probabilities.log().mean()) for _ in range(lengths)]
    return held_out_loss(model, task) - sum(best) / lengths


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns; those that two layers share count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _text(text: str) -> Task:
    check_choice("text", text, tuple(TEXTS))
    return TEXTS[text]
