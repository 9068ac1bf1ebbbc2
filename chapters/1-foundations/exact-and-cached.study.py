"""What small language models lose when attention keeps and projects less, seed by seed."""

import torch
from torch import nn

from attnlib.models.head_embeddings import AddedHeadEmbeddings, MultipliedHeadEmbeddings
from attnlib.models.language import DecoderLM
from attnlib.models.latent import LatentAttention
from attnlib.models.merged_projections import (
    EfficientAttention,
    OptimizedAttention,
    SuperAttention,
)
from attnlib.models.replaced import with_attention
from attnlib.models.unequal_heads import UnequalHeadsAttention
from attnlib.study import grid
from attnlib.tasks.grammar import Grammar, best_loss
from attnlib.tasks.markov import Markov
from attnlib.training import evaluate, train

WIDTH, HEADS, LAYERS, LENGTH, STEPS = 64, 8, 2, 64, 400
TEST_SEED = 10_000
TEXTS = {"grammar": Grammar(length=LENGTH), "markov": Markov(length=LENGTH)}


def heads(key_heads: int, value_heads: int):
    """Eight query heads of width 8 that share so many key heads and value heads."""
    return lambda: UnequalHeadsAttention(
        WIDTH, HEADS, key_heads=key_heads, value_heads=value_heads, is_causal=True
    )


def narrow(count: int):
    """Plain multi-head attention whose key heads have 8 numbers in all, like one shared head."""
    return lambda: UnequalHeadsAttention(
        WIDTH,
        count,
        key_heads=count,
        value_heads=count,
        key_width=WIDTH // HEADS // count,
        value_width=WIDTH // HEADS // count,
        is_causal=True,
    )


def latent():
    """One latent vector of 16 numbers a token: as much as one shared key and value."""
    return LatentAttention(WIDTH, HEADS, latent_width=16, position="none", is_causal=True)


EQUAL_PARAMETERS = {
    "8 keys, 8 values": heads(8, 8),
    "2 keys, 2 values": heads(2, 2),
    "1 key, 1 value": heads(1, 1),
    "1 narrow head": narrow(1),
    "2 narrow heads": narrow(2),
    "4 narrow heads": narrow(4),
    "8 narrow heads": narrow(8),
    "2 keys, 8 values": heads(2, 8),
    "8 keys, 2 values": heads(8, 2),
    "1 key, 8 values": heads(1, 8),
    "8 keys, 1 value": heads(8, 1),
    "latent": latent,
}
FEWER_PARAMETERS = {
    "single head": narrow(1),
    "added": lambda: AddedHeadEmbeddings(WIDTH, HEADS, is_causal=True),
    "multiplied": lambda: MultipliedHeadEmbeddings(WIDTH, HEADS, is_causal=True),
    "optimized": lambda: OptimizedAttention(WIDTH, HEADS, is_causal=True),
    "efficient": lambda: EfficientAttention(WIDTH, HEADS, is_causal=True),
    "super": lambda: SuperAttention(WIDTH, HEADS, length=LENGTH, is_causal=True),
}
WITHOUT_CONTROL = (
    "2 keys, 2 values",
    "2 keys, 8 values",
    "8 keys, 2 values",
    "latent",
    "optimized",
)

CELLS = [
    cell
    for cell in grid(text=list(TEXTS), attention=[*EQUAL_PARAMETERS, *FEWER_PARAMETERS])
    if not (cell["text"] == "markov" and cell["attention"] in WITHOUT_CONTROL)
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The loss above the best possible (nats a word) and the number of parameters."""
    text = TEXTS[cell["text"]]
    model = language_model(text.vocabulary, cell["attention"], seed)
    train(model, text.batches(32, seed), steps=STEPS, seed=seed, progress=False)
    generator = torch.Generator().manual_seed(TEST_SEED)
    tests = [text.batch(256, generator) for _ in range(4)]
    best = sum(map(best_loss, tests)) / len(tests)
    return {
        "excess": evaluate(model, tests, count=len(tests)).loss - best,
        "parameters": parameters(model),
    }


def language_model(vocabulary: int, attention: str, seed: int) -> DecoderLM:
    """A decoder with this attention, where asked for with as many parameters as multi-head's."""
    model = DecoderLM(
        vocabulary,
        width=WIDTH,
        heads=HEADS,
        layers=LAYERS,
        position="learned",
        max_length=LENGTH,
        seed=seed,
    )
    allowed = parameters(model)
    if attention in FEWER_PARAMETERS:
        return with_attention(model, FEWER_PARAMETERS[attention], seed=seed)
    model = with_attention(model, EQUAL_PARAMETERS[attention], seed=seed)
    widen(model, allowed - parameters(model), seed)
    return model


def widen(model: DecoderLM, spare: int, seed: int) -> None:
    """Spend spare parameters on the hidden units of the perceptrons, 2 width + 1 a unit."""
    units = round(spare / len(model.blocks) / (2 * WIDTH + 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            hidden = block.perceptron[0].out_features + units
            block.perceptron = nn.Sequential(
                nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH)
            )


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
