"""Spectra of query-key matrices in three trained attentions, and models read with one-bit weights.

Fixed before any trained model was looked at: sizes, steps, seeds, what is measured, the edge, and
the comparisons on the page (latent attention with decoupled positions against the better of the
other two; a threshold fitted to each row against one on the scores).
"""

from functools import partial

import torch
from torch import Tensor, nn

from attnlib.attend import attend
from attnlib.models.language import DecoderLM
from attnlib.models.latent import LatentAttention, LatentAttentionAfterRotation
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.replaced import with_attention
from attnlib.read.binarized import best_bits, binarized, bits_above
from attnlib.study import grid
from attnlib.tasks.grammar import Grammar, best_loss
from attnlib.tasks.markov import Markov
from attnlib.tasks.recall import MultiQueryRecall
from attnlib.training import evaluate, train

WIDTH, HEADS, LATENT, LAYERS = 64, 4, 32, 2
DRAWS = 99
TEST_SEED = 10_000
GRAMMAR = Grammar(length=64)
TEXTS = {
    "recall": MultiQueryRecall(pairs=6, keys=16, values=16, length=24),
    "markov": Markov(length=24),
}
ATTENTIONS = {
    "multi-head": partial(MultiHeadAttention, position="rope"),
    "rotated, then compressed": partial(LatentAttentionAfterRotation, latent_width=LATENT),
    "decoupled": partial(LatentAttention, latent_width=LATENT),
}
READS = {
    "fitted": binarized(lambda weights, scores: best_bits(weights)),
    "quarter": binarized(lambda weights, scores: bits_above(weights)),
    "quarter_unscaled": binarized(lambda weights, scores: bits_above(weights), scaled=False),
    "mean": binarized(lambda weights, scores: weights >= row_mean(weights)),
    "scores": binarized(lambda weights, scores: scores >= 0),
}

CELLS = [
    *grid(experiment=["spectra"], attention=list(ATTENTIONS), steps=[0, 50, 400]),
    *grid(experiment=["bits"], text=list(TEXTS)),
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The measured numbers of one cell with one seed."""
    cell = dict(cell)
    return EXPERIMENTS[cell.pop("experiment")](seed=seed, **cell)


def spectra(seed: int, attention: str, steps: int) -> dict:
    """Outliers and ranks of the query-key matrices of a language model after so many steps."""
    model = DecoderLM(GRAMMAR.vocabulary, width=WIDTH, heads=HEADS, layers=LAYERS, seed=seed)
    make = partial(ATTENTIONS[attention], WIDTH, HEADS, is_causal=True)
    model = with_attention(model, make, seed=seed)
    if steps:
        train(model, GRAMMAR.batches(16, seed), steps=steps, seed=seed, progress=False)
    test = GRAMMAR.batch(128, TEST_SEED)
    measured = {"excess": evaluate(model, [test]).loss - best_loss(test)}
    generator = torch.Generator().manual_seed(seed)
    layers = [diagnosis(terms_of(block.attention), generator) for block in model.blocks]
    measured["outliers"] = sum(layer["outliers"] for layer in layers)
    for name in ("stable_rank", "relative_stable_rank", "soft_rank"):
        measured[name] = sum(layer[name] for layer in layers) / len(layers)
    return measured


def diagnosis(terms: list[list[Tensor]], generator: torch.Generator) -> dict:
    """One layer's spectrum beside the spectra of products of the same factors, shuffled.

    outliers: squared singular values above the edge, the largest of all shuffled products;
    soft rank: the edge over the largest; stable rank: their sum over the largest, and the same
    relative to the shuffled products' mean.
    """
    squares = spectrum(total(terms))
    null = torch.stack([spectrum(total(shuffled(terms, generator))) for _ in range(DRAWS)])
    edge, rank = null.max(), stable_rank(squares)
    return {
        "outliers": int((squares > edge).sum()),
        "soft_rank": float(edge / squares.max()),
        "stable_rank": float(rank),
        "relative_stable_rank": float(rank / stable_rank(null).mean()),
    }


def total(terms: list[list[Tensor]]) -> Tensor:
    """The sum of the products of the factors of each term."""
    return sum(torch.linalg.multi_dot(term) for term in terms)


def spectrum(matrix: Tensor) -> Tensor:
    """The squared singular values, the largest first."""
    return torch.linalg.svdvals(matrix) ** 2


def stable_rank(squares: Tensor) -> Tensor:
    """The squared Frobenius norm over the squared spectral norm."""
    return squares.sum(-1) / squares.amax(-1)


def shuffled(terms: list[list[Tensor]], generator: torch.Generator) -> list[list[Tensor]]:
    """The same factors, the entries of each in random order."""
    return [[shuffle(factor, generator) for factor in term] for term in terms]


def shuffle(factor: Tensor, generator: torch.Generator) -> Tensor:
    """A matrix with the same entries in random order."""
    order = torch.randperm(factor.numel(), generator=generator)
    return factor.flatten()[order].view_as(factor)


@torch.no_grad()
def terms_of(layer: nn.Module) -> list[list[Tensor]]:
    """The factors of W_Q W_K^T, the score matrix summed over heads with the rotations left out.

    The gain of the norm between the two maps of a latent vector belongs to the upper one.
    """
    query = layer.to_query.weight.double().T
    if isinstance(layer, MultiHeadAttention):
        return [[query, layer.to_key.weight.double()]]
    up = (layer.up_key * layer.norm.weight).flatten(0, 1).double()
    content = [query, up, layer.to_latent.weight.double()]
    if isinstance(layer, LatentAttentionAfterRotation):
        return [[*content, layer.to_key.weight.double()]]
    rotary = layer.to_query_rotary.weight.double()
    summed = rotary.unflatten(0, (layer.heads, layer.rotary_width)).sum(0)
    return [content, [summed.T, layer.to_key_rotary.weight.double()]]


def bits(seed: int, text: str) -> dict:
    """The accuracy of a trained decoder, and of the same decoder read with one-bit weights."""
    task = TEXTS[text]
    model = DecoderLM(task.vocabulary, layers=2, position="rope", seed=seed)
    train(model, task.batches(64, seed), steps=400, seed=seed, progress=False)
    tests = [task.batch(256, TEST_SEED + number) for number in range(4)]
    measured = {"full": evaluate(model, tests).accuracy}
    for name, weight in READS.items():
        for block in model.blocks:
            block.attention.operator = partial(attend, weight=weight)
        measured[name] = evaluate(model, tests).accuracy
    return measured


def row_mean(weights: Tensor) -> Tensor:
    """The mean weight over the keys that a query sees (those whose weight is not zero)."""
    return weights.sum(-1, keepdim=True) / (weights > 0).sum(-1, keepdim=True).clamp(min=1)


EXPERIMENTS = {"spectra": spectra, "bits": bits}
