"""Do softmax heads and state heads in one layer do what neither kind does alone?"""

from functools import partial

import torch
from torch import nn

from attnlib.models.delta_layer import GatedDeltaLayer
from attnlib.models.hybrid_heads import HybridHeads
from attnlib.models.language import DecoderLM
from attnlib.models.replaced import with_attention
from attnlib.models.state_layer import SoftmaxLayer
from attnlib.study import grid
from attnlib.tasks.recall import MultiQueryRecall
from attnlib.tasks.state_tracking import ModularCounter
from attnlib.tasks.task import IGNORE, Task, TokenBatch, generator_from
from attnlib.training import train

WIDTH, PARAMETERS, TEST_SEED = 32, 16_900, 10_000
RECALL = MultiQueryRecall(pairs=8, keys=32, values=32, length=32, power=1.0)
COUNTER = ModularCounter(2, length=24)

HEADS = {
    "softmax": partial(SoftmaxLayer, WIDTH, 4),
    "state": partial(GatedDeltaLayer, WIDTH, 4, largest_beta=2.0),
    "both": partial(HybridHeads, WIDTH, 2, largest_beta=2.0),
}

CELLS = [*grid(heads=list(HEADS), steps=[400]), {"heads": "softmax", "steps": 40}]
SEEDS = range(3)


class RecallAndParity(Task):
    """Half of the rows are recall, half are bits whose parity is asked for at each bit."""

    vocabulary = RECALL.vocabulary + COUNTER.vocabulary

    def batch(self, size, seed) -> TokenBatch:
        generator = generator_from(seed)
        tokens, targets = RECALL.batch(size, generator)
        bits, parity = COUNTER.batch(size // 2, generator)
        tokens[size // 2 :], targets[size // 2 :] = RECALL.filler, IGNORE
        tokens[size // 2 :, : COUNTER.length] = bits + RECALL.vocabulary
        targets[size // 2 :, : COUNTER.length] = parity + RECALL.vocabulary
        return TokenBatch(tokens, targets)


def run(cell: dict, seed: int) -> dict:
    """The share of right answers to each kind of question, after training on both."""
    task = RecallAndParity()
    model = DecoderLM(task.vocabulary, width=WIDTH, heads=2, layers=1, position="none", seed=seed)
    heads = partial(HEADS[cell["heads"]], key_width=4, value_width=8)
    widen(with_attention(model, heads, seed=seed), seed)
    batches = task.batches(64, seed)
    steps = cell["steps"]
    train(model, batches, steps=steps, learning_rate=1e-2, seed=seed, progress=False)
    batch = task.batch(1024, TEST_SEED)
    right = answers(model, batch)
    measured = {"recall": right[:512], "parity": right[512:]}
    shares = {name: rows[rows >= 0].double().mean().item() for name, rows in measured.items()}
    return {**shares, "worse": min(shares.values()), "parameters": parameters(model)}


@torch.no_grad()
def answers(model: nn.Module, batch: TokenBatch) -> torch.Tensor:
    """1 where the model is right, 0 where it is wrong, -1 where nothing is asked."""
    right = (model(batch.tokens).argmax(-1) == batch.targets).long()
    return right.masked_fill(batch.targets == IGNORE, -1)


def widen(model: DecoderLM, seed: int) -> None:
    """Spend spare parameters on hidden units of the perceptron, 2 width + 1 a unit."""
    units = (PARAMETERS - parameters(model)) // (2 * WIDTH + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            hidden = block.perceptron[0].out_features + max(units, 0)
            block.perceptron = nn.Sequential(
                nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH)
            )


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
