"""How much memories that learn at test time hold, with and without outliers, near and far."""

import math
import time

import torch
from torch import nn
from torch.nn.functional import normalize

from attnlib.memory.delta_rule import delta_rule_recurrent
from attnlib.memory.inner_models import answer, start_weights
from attnlib.memory.miras import (
    DELTA_RULE,
    LINEAR_ATTENTION,
    Miras,
    memora,
    miras_step,
    moneta,
    yaad,
)
from attnlib.memory.miras_choices import huber_bias, power_bias, squared_bias
from attnlib.memory.neural_memory import deep_memory_recurrent
from attnlib.models.language import DecoderLM
from attnlib.models.replaced import with_attention
from attnlib.models.titans_layers import (
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
    PersistentWindow,
)
from attnlib.models.working_memory import FactReader, answers
from attnlib.study import grid
from attnlib.tasks.streams import (
    NearAndFarRecall,
    RelationalFacts,
    key_value_stream,
    recalled,
)
from attnlib.tasks.task import IGNORE
from attnlib.training import train

RATES = [2.0**power for power in range(-9, 7)]  # the same grid for every memory
SIZES = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # pairs in a stream
VALUE_WIDTH = 16
TUNED_ON = 1000  # seeds of the streams on which a rate is chosen, apart from those of the test
STREAMS = 64

CELLS = [
    *grid(
        experiment=["recall"],
        memory=["hebb", "delta", "gated delta", "titans", "moneta", "yaad", "memora"],
        numbers=[256, 512, 1024],
        outliers=[0.0, 0.1],
    ),
    *grid(
        experiment=["outliers"],
        memory=["l2", "huber", "l1.5", "l3", "moneta"],
        noise=["none", "outliers", "normal"],
    ),
    *grid(experiment=["deep"], hidden=[0, 8, 64], passes=[1, 16]),
    *grid(experiment=["stream"], layer=["window", "context", "gate", "layer", "full attention"]),
    *grid(experiment=["inside"], layer=["window", "context"]),
    *grid(experiment=["relations"], memory=["none", "working", "both"], facts=[4, 12]),
    *grid(experiment=["drift"], memory=["titans", "titans, keeps all", "yaad", "memora", "deep"]),
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The measures of one cell: see the function of its experiment."""
    cell = dict(cell)
    return EXPERIMENTS[cell.pop("experiment")](seed=seed, **cell)


# --- recall against the numbers of state; rates chosen per cell, on other streams ---


def recall(memory: str, numbers: int, outliers: float, seed: int) -> dict:
    """Pairs of which nine in ten are recalled after one showing, and the error at 16 pairs.

    Each of the two has its own rate. Values have 16 numbers, keys as many as the state allows:
    momentum (titans) and a key beside its negative (memora, whose memory is positive) take twice
    the numbers, so half the key width.
    """
    doubled = memory in ("titans", "memora")
    width = numbers // VALUE_WIDTH // (2 if doubled else 1)

    def shown(pairs: int, rate: float, seed: int) -> tuple[float, float]:
        return one_pass(memory, rate, pairs, width, outliers, seed)

    def held(rate: float, seed: int) -> float:
        return capacity(lambda pairs: shown(pairs, rate, seed)[0])

    tuned = TUNED_ON + seed
    for_many = best_rate(lambda rate: held(rate, tuned))
    for_close = best_rate(lambda rate: -shown(16, rate, tuned)[1])
    return {
        "capacity": held(for_many, seed),
        "error": shown(16, for_close, seed)[1],
        "rate": for_many,
        "width": width,
    }


def one_pass(memory, rate, pairs, width, outliers, seed) -> tuple[float, float]:
    """(share recalled, error) over the pairs that were shown clean, after one showing of each."""
    stream = key_value_stream(
        pairs,
        width,
        value_width=VALUE_WIDTH,
        streams=STREAMS,
        outliers=outliers,
        generator=seed,
    )
    read = READERS[memory](stream.key, stream.written, rate)
    return judged(read, stream)


def judged(read, stream) -> tuple[float, float]:
    """(share recalled, squared error) of the pairs that were shown clean."""
    clean = ~stream.is_outlier
    error = (read - stream.value).square().sum(-1)[clean].mean().item()
    return recalled(read, stream.value)[clean].double().mean().item(), error


def read_with(choices: Miras, **options):
    """Write all pairs, then ask for all keys."""

    def reader(key, value, rate):
        _, state = miras_step(None, key, key, value, choices, rate=rate, **options)
        return choices.architecture.answer(choices.memory(state.accumulated), key)

    return reader


def read_memora(key, value, rate):
    """A positive memory over a key and its negative; the columns sum to the root of the width."""
    both = torch.cat((key, -key), dim=-1)
    return read_with(memora(key.shape[-1] ** 0.5))(both, value, rate)


def read_gated_delta(key, value, rate):
    """The delta rule on a state that fades by 0.99 before each write."""
    log_decay = math.log(0.99)
    _, state = delta_rule_recurrent(key, key, value, beta=rate, log_decay=log_decay)
    return key @ state


READERS = {
    "hebb": read_with(LINEAR_ATTENTION),
    "delta": read_with(DELTA_RULE),
    "gated delta": read_gated_delta,
    "titans": read_with(DELTA_RULE, momentum=0.5, keep=0.99),
    "moneta": read_with(moneta(3.0, 4.0)),
    "yaad": read_with(yaad(0.5)),
    "memora": read_memora,
}


def capacity(share_recalled) -> float:
    """The number of pairs at which the share recalled falls below 0.9, between sizes by logs."""
    before = (1.0, 1.0)  # one pair, recalled
    for pairs in SIZES:
        share = share_recalled(pairs)
        if share < 0.9:
            size, last = before
            part = (last - 0.9) / (last - share)
            return size * (pairs / size) ** part
        before = (float(pairs), share)
    return float(SIZES[-1])


def best_rate(score) -> float:
    """The rate with the highest score; where a memory diverges it counts as nothing."""

    def safe(rate: float) -> float:
        try:
            found = score(rate)
        except ValueError:
            return -math.inf
        return found if math.isfinite(found) else -math.inf

    return max(RATES, key=safe)


# --- outliers against normal noise of the same energy ---

BIASES = {
    "l2": Miras(squared_bias),
    "huber": Miras(huber_bias(0.5)),
    "l1.5": Miras(power_bias(1.5)),
    "l3": Miras(power_bias(3.0)),
    "moneta": moneta(3.0, 4.0),
}


def outliers(memory: str, noise: str, seed: int) -> dict:
    """Squared error against the clean values of 16 pairs, each shown 8 times; keys of 32."""
    disturbed = {
        "none": {},
        "outliers": {"outliers": 0.1, "outlier_size": 5.0},
        "normal": {"noise": 5.0 * 0.1**0.5},
    }[noise]

    def error(rate: float, seed: int) -> float:
        stream = key_value_stream(16, 32, streams=STREAMS, repeats=8, generator=seed, **disturbed)
        read = read_with(BIASES[memory])(stream.key, stream.written, rate)
        return (read - stream.value)[:, :16].square().sum(-1).mean().item()

    rate = best_rate(lambda rate: -error(rate, TUNED_ON + seed))
    return {"error": error(rate, seed), "rate": rate}


# --- a perceptron as memory: equal numbers (hidden 8) and equal width (hidden 64) ---


def deep(hidden: int, passes: int, seed: int) -> dict:
    """Pairs recalled by a memory with keys and values of 16 numbers; hidden 0 is the matrix.

    Besides, the squared error at 8 pairs, which a matrix holds, and at 32, which it cannot.
    """
    weights = start_weights(16, hidden or (), 16, generator=torch.Generator().manual_seed(seed))

    def shown(pairs: int, rate: float, seed: int) -> tuple[float, float]:
        stream = key_value_stream(pairs, 16, streams=16, repeats=passes, generator=seed)
        _, state = deep_memory_recurrent(
            stream.key, stream.key, stream.written, weights=weights, theta=rate
        )
        first = type(stream)(*(part[:, :pairs] for part in stream))
        return judged(answer(state.memory, first.key), first)

    def held(rate: float, seed: int) -> float:
        return capacity(lambda pairs: shown(pairs, rate, seed)[0])

    tuned = TUNED_ON + seed
    errors = {}
    for pairs in (8, 32):
        rate = best_rate(lambda rate, pairs=pairs: -shown(pairs, rate, tuned)[1])
        errors[f"error at {pairs}"] = shown(pairs, rate, seed)[1]
    for_many = best_rate(lambda rate: held(rate, tuned))
    numbers = sum(matrix.numel() for matrix in weights)

    def tested(pairs: int) -> float:
        try:
            return shown(pairs, for_many, seed)[0]
        except ValueError:  # a memory that diverges on the streams of the test recalls nothing
            return 0.0

    return {"capacity": capacity(tested), "rate": for_many, "numbers": numbers, **errors}


# --- questions inside and beyond the window ---

TASK = NearAndFarRecall(far=6, near=6, keys=24, values=8)  # near questions cross a segment
INSIDE = NearAndFarRecall(far=8, near=6, keys=24, values=8)  # they lie in the segment of their key
WINDOW, WIDTH, HEADS, STEPS = 8, 64, 2, 300
LEARNING_RATE = 3e-3
ALLOWED = 70_000  # parameters: what a layer does not need goes to the perceptrons
LAYERS = {
    "window": lambda: PersistentWindow(WIDTH, HEADS, window=WINDOW),
    "full attention": lambda: PersistentWindow(WIDTH, HEADS, window=TASK.length),
    "context": lambda: MemoryAsContext(WIDTH, HEADS, segment=WINDOW),
    "gate": lambda: MemoryAsGate(WIDTH, HEADS, window=WINDOW),
    "layer": lambda: MemoryAsLayer(WIDTH, HEADS, window=WINDOW),
}


def stream(layer: str, seed: int, task=TASK) -> dict:
    """Accuracy of near and of far questions, at equal parameters; no positions but a convolution.

    Near ones lie at most 6 tokens behind their key, far ones at least 26, beyond the window.
    """
    model = DecoderLM(
        task.vocabulary, width=WIDTH, heads=HEADS, layers=1, position="none", seed=seed
    )
    model = with_attention(model, LAYERS[layer], seed=seed)
    widen(model, ALLOWED - numbers_of(model), seed)
    train(
        model,
        task.batches(32, seed),
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        seed=seed,
        progress=False,
    )
    batch = task.batch(256, TUNED_ON)
    with torch.no_grad():
        right = (model(batch.tokens).argmax(-1) == batch.targets).double()
    asked = batch.targets != IGNORE
    return {
        "near": right[asked & ~task.is_far].mean(),
        "far": right[asked & task.is_far].mean(),
        "parameters": numbers_of(model),
    }


def inside(layer: str, seed: int) -> dict:
    """The same where no near question crosses the border of two segments."""
    return stream(layer, seed, INSIDE)


def widen(model: DecoderLM, spare: int, seed: int) -> None:
    """Spend spare parameters on hidden units of the perceptrons, 2 width + 1 a unit."""
    units = spare // len(model.blocks) // (2 * WIDTH + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            hidden = block.perceptron[0].out_features + units
            block.perceptron = nn.Sequential(
                nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH)
            )


def numbers_of(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


# --- facts for four slots ---


def relations(memory: str, facts: int, seed: int) -> dict:
    """Accuracy of questions about early facts (the first half) and about the last segment."""
    task = RelationalFacts(facts=facts, subjects=32, places=8)
    model = FactReader(task.vocabulary, task.places, memory=memory, slots=4, seed=seed)
    train(model, task.batches(64, seed), steps=600, objective=answers, seed=seed, progress=False)
    batch = task.batch(4096, TUNED_ON)
    with torch.no_grad():
        right = (model(batch.facts, batch.question).argmax(-1) == batch.targets).double()
    return {
        "early": right[batch.place < facts // 2].mean(),
        "last": right[batch.place >= facts - model.segment].mean(),
        "all": right.mean(),
    }


# --- a hundred thousand tokens ---


def drift(memory: str, seed: int) -> dict:
    """Largest difference of float32 reads from float64 ones, relative to the largest read."""
    pieces, size, width = 100, 1000, 16
    generator = torch.Generator().manual_seed(seed)
    states, worst, seconds = {torch.float32: None, torch.float64: None}, [], []
    weights = start_weights(width, 32, width, generator=generator)
    for _ in range(pieces):
        key, value = torch.randn(2, 1, size, width, generator=generator, dtype=torch.float64)
        key = normalize(key, dim=-1)
        reads = []
        for dtype in states:
            start = time.perf_counter()
            rows = (key.to(dtype), value.to(dtype))
            read, states[dtype] = streamed(memory, states[dtype], *rows, weights)
            seconds.append(time.perf_counter() - start)
            reads.append(read.double())
        off = (reads[0] - reads[1]).abs().max() / reads[1].abs().max()
        worst.append(off.item())
    tenth = pieces // 10
    alone = seconds[::2]  # float32
    return {
        "after 1000": worst[0],
        "after 10000": max(worst[9:10]),
        "after 100000": worst[-1],
        "worst": max(worst),
        "microseconds at first": 1e6 * sum(alone[:tenth]) / tenth / size,
        "microseconds at last": 1e6 * sum(alone[-tenth:]) / tenth / size,
    }


def streamed(memory, state, key, value, weights):
    """(reads, new state) of the next tokens, every key asked right behind its value."""
    if memory == "deep":
        weights = tuple(matrix.to(key.dtype) for matrix in weights)
        return deep_memory_recurrent(
            key, key, value, weights=weights, theta=0.005, eta=0.5, state=state
        )
    choices, options = {
        "titans": (DELTA_RULE, {"rate": 0.3, "momentum": 0.5, "keep": 0.99}),
        "titans, keeps all": (DELTA_RULE, {"rate": 0.3, "momentum": 0.5}),
        "yaad": (yaad(0.5), {"rate": 0.5, "keep": 0.99}),
        "memora": (memora(4.0), {"rate": 1.0, "keep": 0.99}),
    }[memory]
    return miras_step(state, key, key, value, choices, **options)


EXPERIMENTS = {
    "recall": recall,
    "outliers": outliers,
    "deep": deep,
    "stream": stream,
    "inside": inside,
    "relations": relations,
    "drift": drift,
}
