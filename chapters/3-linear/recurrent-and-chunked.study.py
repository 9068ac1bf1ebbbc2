"""What memories of fixed size recall, track and tell apart, and what mixing them gives."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from attnlib.models.delta_layer import DeltaLayer, GatedDeltaLayer
from attnlib.models.language import DecoderLM
from attnlib.models.replaced import with_attention
from attnlib.models.short_long_layer import ShortLongLayer
from attnlib.models.state_layer import SoftmaxLayer, WindowLayer
from attnlib.models.summing_layers import (
    GatedLinearLayer,
    LinearLayer,
    RetentionLayer,
    StateSpaceLayer,
    TaylorLayer,
)
from attnlib.study import grid
from attnlib.tasks.grammar import Grammar, best_loss
from attnlib.tasks.recall import MultiQueryRecall
from attnlib.tasks.rhythms import Counts, Rhythms
from attnlib.tasks.state_tracking import ModularCounter, OverwrittenRecall, Swaps
from attnlib.tasks.task import IGNORE
from attnlib.training import evaluate, train

WIDTH, HEADS, TEST_SEED = 32, 2, 10_000
BYTES = 4
"""A number of a state, kept in float32."""

MEMORIES = {
    "softmax": SoftmaxLayer,
    "linear": LinearLayer,
    "retention": RetentionLayer,
    "gated linear": GatedLinearLayer,
    "state space": StateSpaceLayer,
    "delta": DeltaLayer,
    "gated delta": GatedDeltaLayer,
    "delta to 2": partial(DeltaLayer, largest_beta=2.0),
}
SIZES = {
    "softmax": [16],
    "window": [4, 16],
    "taylor": [2, 4],
    **{name: [4, 16] for name in list(MEMORIES)[1:7]},
}
"""The key width of each memory of the frontier; for a window, how many tokens it holds."""

STACKS = {
    "window, taylor": [
        partial(WindowLayer, window=2, key_width=8),
        partial(TaylorLayer, key_width=6),
    ],
    "taylor, taylor": [partial(TaylorLayer, key_width=4)] * 2,
    "window, window": [partial(WindowLayer, window=11, key_width=8)] * 2,
}
PATTERNS = {"linear only": "LLLL", "3:1": "LLLF", "1:1": "LFLF"}
TRACKED = {
    "parity": ModularCounter(2, length=12),
    "modulo 3": ModularCounter(3, length=12),
    "swaps": Swaps(3, length=12),
}
STRINGS = {"rhythm": Rhythms(length=64), "count": Counts(length=64)}
MIXERS = {
    "linear attention": None,
    "short": {"taps": 4, "length": 1},
    "long": {"taps": 1, "length": 64},
    "short and long": {"taps": 4, "length": 64},
}

LONGER = [
    *grid(experiment=["hybrid"], neighbors=["window alone"], stack=list(STACKS), steps=[1000]),
    *grid(experiment=["hybrid"], neighbors=["convolution"], stack=list(STACKS)[:2], steps=[1000]),
    *grid(experiment=["ratio"], memory=["retention"], ratio=list(PATTERNS), steps=[900]),
]
"""Added after the first runs, in which some stacks had only begun to learn: the same, longer."""

CELLS = [
    *(
        {"experiment": "recall", "memory": memory, "size": size}
        for memory, sizes in SIZES.items()
        for size in sizes
    ),
    *grid(
        experiment=["tracking"],
        task=["parity", "swaps"],
        memory=["softmax", "linear", "state space", "delta", "delta to 2"],
    ),
    {"experiment": "tracking", "task": "modulo 3", "memory": "delta to 2"},
    *grid(
        experiment=["overwriting"],
        writes=[18],
        memory=["softmax", "linear", "state space", "delta"],
    ),
    *grid(experiment=["overwriting"], writes=[6], memory=["linear", "delta"]),
    *grid(experiment=["hybrid"], neighbors=["window alone"], stack=list(STACKS)),
    *grid(experiment=["hybrid"], neighbors=["convolution"], stack=list(STACKS)[:2]),
    *grid(experiment=["strings"], string=["rhythm"], mixer=list(MIXERS)),
    *grid(experiment=["strings"], string=["count"], mixer=["linear attention", "short and long"]),
    *grid(experiment=["ratio"], memory=["retention"], ratio=list(PATTERNS)),
    {"experiment": "ratio", "memory": "softmax", "ratio": "full only"},
    *LONGER,
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The measured numbers of one cell with one seed."""
    cell = dict(cell)
    return EXPERIMENTS[cell.pop("experiment")](seed=seed, **cell)


def recall(seed: int, memory: str, size: int) -> dict:
    """One layer recalls eight pairs; all layers have the parameters of the largest of them."""
    task = MultiQueryRecall(pairs=8, keys=32, values=32, length=32, power=1.0)
    if memory == "window":
        make = partial(WindowLayer, window=size, key_width=8)
    else:
        make = partial({**MEMORIES, "taylor": TaylorLayer}[memory], key_width=size)
    model = stacked(task.vocabulary, [make], seed)
    widen(model, 14_100, seed)
    learn(model, task, seed, steps=320)
    return {
        "accuracy": tested(model, task),
        "bytes": state_bytes(model, task.length),
        "parameters": parameters(model),
    }


def tracking(seed: int, task: str, memory: str) -> dict:
    """One layer follows a machine for 12 tokens, tested there and on 48; no convolution."""
    task = TRACKED[task]
    make = partial(MEMORIES[memory], key_width=8, convolution=0)
    model = stacked(task.vocabulary, [make], seed)
    learn(model, task, seed, steps=300)
    longer = replace(task, length=48)
    return {"accuracy": tested(model, task), "longer": tested(model, longer, count=1)}


def overwriting(seed: int, writes: int, memory: str) -> dict:
    """Six keys are written 18 times in all (or once each): what was the last value of each?"""
    task = OverwrittenRecall(keys=6, values=16, writes=writes)
    model = stacked(task.vocabulary, [partial(MEMORIES[memory], key_width=16)], seed)
    learn(model, task, seed, steps=300)
    return {"accuracy": tested(model, task)}


def hybrid(seed: int, neighbors: str, stack: str, steps: int = 400) -> dict:
    """Two layers of about 1040 numbers of state recall twelve pairs.

    A token must be joined to its neighbor: only attention can do that, or a convolution helps.
    """
    task = MultiQueryRecall(pairs=12, keys=48, values=48, length=40, power=1.0)
    taps = 4 if neighbors == "convolution" else 0
    layers = [partial(layer, convolution=taps) for layer in STACKS[stack]]
    model = stacked(task.vocabulary, layers, seed)
    widen(model, 22_000, seed)
    learn(model, task, seed, steps=steps)
    return {
        "accuracy": tested(model, task),
        "bytes": state_bytes(model, task.length),
        "parameters": parameters(model),
    }


def strings(seed: int, string: str, mixer: str) -> dict:
    """The class of a string of 64 signs, told by its rhythm or by its count."""
    task, sizes = STRINGS[string], MIXERS[mixer]
    make = (
        partial(LinearLayer, convolution=0) if sizes is None else partial(ShortLongLayer, **sizes)
    )
    layers = [partial(make, key_width=8)]
    model = stacked(task.vocabulary, layers, seed, position="learned")
    widen(model, 13_100, seed)
    learn(model, task, seed, steps=240)
    return {"accuracy": tested(model, task), "parameters": parameters(model)}


def ratio(seed: int, memory: str, ratio: str, steps: int = 300) -> dict:
    """Four layers, some with softmax: recall of eight pairs, and the loss on a small language."""
    pattern = PATTERNS.get(ratio, "FFFF")
    makes = {"L": MEMORIES[memory], "F": SoftmaxLayer}
    layers = [partial(makes[letter], key_width=4) for letter in pattern]
    task = MultiQueryRecall(pairs=8, keys=16, values=16, length=32, power=1.0)
    recalling = stacked(task.vocabulary, layers, seed)
    learn(recalling, task, seed, steps=steps)

    text = Grammar(length=32)
    speaking = stacked(text.vocabulary, layers, seed)
    train(
        speaking, text.batches(16, seed), steps=200, learning_rate=1e-2, seed=seed, progress=False
    )
    test = text.batch(512, TEST_SEED)
    return {
        "accuracy": tested(recalling, task),
        "excess": evaluate(speaking, [test], count=1).loss - float(best_loss(test)),
        "bytes": state_bytes(recalling, task.length),
    }


EXPERIMENTS = {
    "recall": recall,
    "tracking": tracking,
    "overwriting": overwriting,
    "hybrid": hybrid,
    "strings": strings,
    "ratio": ratio,
}


def stacked(vocabulary: int, layers: list, seed: int, position: str = "none") -> DecoderLM:
    """A decoder with these layers, one after the other."""
    made = iter(layers)
    model = DecoderLM(
        vocabulary,
        width=WIDTH,
        heads=HEADS,
        layers=len(layers),
        position=position,
        max_length=64,
        seed=seed,
    )
    return with_attention(model, lambda: next(made)(WIDTH, HEADS), seed=seed)


def learn(model: DecoderLM, task, seed: int, steps: int) -> None:
    """Train on fresh batches of 32."""
    train(model, task.batches(32, seed), steps=steps, learning_rate=1e-2, seed=seed, progress=False)


def tested(model: DecoderLM, task, count: int = 3) -> float:
    """The share of right answers in fresh batches of 256."""
    right = [answers(model, batch) for batch in batches(task, count)]
    return torch.cat(right).double().mean().item()


@torch.no_grad()
def answers(model: DecoderLM, batch) -> torch.Tensor:
    """Which of the targets that are asked for the model says."""
    asked = batch.targets != IGNORE
    return (model(batch.tokens).argmax(-1) == batch.targets)[asked]


def batches(task, count: int) -> list:
    """The same fresh batches for every model."""
    generator = torch.Generator().manual_seed(TEST_SEED)
    return [task.batch(256, generator) for _ in range(count)]


def state_bytes(model: DecoderLM, length: int) -> int:
    """What all layers keep after so many tokens."""
    return BYTES * sum(block.attention.state_numbers(length) for block in model.blocks)


def widen(model: DecoderLM, wanted: int, seed: int) -> None:
    """Spend spare parameters on hidden units of the perceptrons, 2 width + 1 a unit."""
    units = (wanted - parameters(model)) // len(model.blocks) // (2 * WIDTH + 1)
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
