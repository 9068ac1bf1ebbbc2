"""What recall, pointing, reading in two directions and conditioned scores learn, seed by seed."""

import torch
from torch.nn import functional as F

from attnlib.models.language import DecoderLM
from attnlib.models.pointer import FixedOutput, PointerNetwork
from attnlib.models.pooling import CONDITIONS, PooledClassifier
from attnlib.models.span_reader import DIRECTIONS, SpanReader
from attnlib.study import grid
from attnlib.tasks.keyed_spans import KeyedSpans
from attnlib.tasks.lexicon import WORDS, sentences
from attnlib.tasks.pointing import ConvexHull, PointingBatch, Sorting, polygon_area
from attnlib.tasks.recall import MultiQueryRecall
from attnlib.tasks.task import IGNORE, Task, TokenBatch
from attnlib.training import evaluate, train

TEST_SEED = 10_000
RECALL = MultiQueryRecall(pairs=6, keys=16, values=16, length=24)

CELLS = [
    *grid(experiment=["recall"], layers=[1, 2], pair=["two tokens", "one token"]),
    *grid(experiment=["sort"], output=["pointer", "fixed"]),
    *grid(experiment=["hull"], trained=[True, False]),
    *grid(experiment=["spans"], asked=[1, 16], directions=list(DIRECTIONS)),
    *grid(experiment=["lexicon"], informative=[True, False], condition=list(CONDITIONS)),
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The measured numbers of one cell with one seed."""
    cell = dict(cell)
    return EXPERIMENTS[cell.pop("experiment")](seed=seed, **cell)


def recall(seed: int, layers: int, pair: str) -> dict:
    """A decoder of one or two layers recalls six pairs, each written as two tokens or as one.

    Pairs of one token need longer: there are 272 different tokens to learn instead of 32.
    """
    task, steps = (RECALL, 400) if pair == "two tokens" else (JointRecall(), 1200)
    model = DecoderLM(task.vocabulary, layers=layers, position="rope", seed=seed)
    train(model, task.batches(64, seed), steps=steps, seed=seed, progress=False)
    return {"accuracy": evaluate(model, task.batches(256, TEST_SEED), count=4).accuracy}


class JointRecall(Task):
    """The control of recall: one token holds key and value, so no token need look at the last one.

    Tokens: first one for each pair of 16 keys and 16 values, then the keys that are asked for.
    """

    vocabulary = RECALL.keys * RECALL.values + RECALL.keys

    def batch(self, size, seed) -> TokenBatch:
        listed = RECALL.batch(size, seed).tokens[:, : 2 * RECALL.pairs]
        key, value = listed[:, 0::2], listed[:, 1::2] - RECALL.keys
        asked = key + RECALL.keys * RECALL.values
        tokens = torch.cat((key * RECALL.values + value, asked), dim=1)
        targets = torch.cat((torch.full_like(value, IGNORE), value), dim=1)
        return TokenBatch(tokens, targets)


def sort(seed: int, output: str) -> dict:
    """Sorting 5 to 8 numbers with a pointer or with 8 output units, tested up to 12."""
    torch.manual_seed(seed)
    model = PointerNetwork(1) if output == "pointer" else FixedOutput(1, places=8)
    batches = mixed_sizes({count: Sorting(count) for count in range(5, 9)}, seed)
    train(model, batches, steps=1500, objective=pointing, seed=seed, progress=False)
    measured = {}
    for count in (8, 10, 12):
        items, targets = Sorting(count).batch(1000, TEST_SEED)
        right = model.answer(items, count) == targets
        measured[f"accuracy_{count}"] = right.float().mean().item()
        if count > 8:
            measured[f"beyond_{count}"] = right[targets >= 8].float().mean().item()
    return measured


def hull(seed: int, trained: bool) -> dict:
    """Convex hulls of 5 to 10 points, tested up to 20."""
    torch.manual_seed(seed)
    model = PointerNetwork(2, width=128)
    if trained:
        stored = {count: ConvexHull(count).batch(6000, seed) for count in range(5, 11)}
        train(
            model,
            stored_sizes(stored, seed),
            steps=4000,
            learning_rate=2e-3,
            objective=pointing,
            seed=seed,
            progress=False,
        )
    measured = {}
    for count in (5, 10, 15, 20):
        items, targets = ConvexHull(count).batch(500, TEST_SEED)
        answers = model.answer(items, count + 1)
        rows = [hull_score(*row) for row in zip(items, targets, answers, strict=True)]
        right, simple, area = torch.tensor(rows).double().T
        measured[f"accuracy_{count}"] = right.mean().item()
        measured[f"simple_{count}"] = simple.mean().item()
        measured[f"area_{count}"] = area.mean().item()
    return measured


def spans(seed: int, asked: int, directions: str) -> dict:
    """Reading spans when the question names one entity, or sixteen of which one occurs."""
    torch.manual_seed(seed)
    task = KeyedSpans(asked=asked)
    model = SpanReader(task.vocabulary, directions=directions)
    batches = task.batches(64, seed)
    train(model, batches, steps=400, learning_rate=5e-3, objective=span, seed=seed, progress=False)
    test = evaluate(model, task.batches(256, TEST_SEED), count=4, objective=span)
    return {"exact_match": test.accuracy}


def lexicon(seed: int, informative: bool, condition: str) -> dict:
    """Attention pooling over 20 words, learnt from 100 sentences, with a noisy lexicon."""
    generator = torch.Generator().manual_seed(seed)
    learn = sentences(100, 20, generator, informative=informative)
    test = sentences(1000, 20, generator, informative=informative)
    torch.manual_seed(seed)
    model = PooledClassifier(WORDS, classes=2, side=1, condition=condition)
    train(
        model,
        [learn] * 150,
        steps=150,
        learning_rate=1e-2,
        weight_decay=1e-2,
        objective=labels,
        seed=seed,
        progress=False,
    )
    with torch.no_grad():
        _, weights = model.pool(test.tokens, test.flags)
        mass = weights[:, 0].gather(1, test.place[:, None]).mean().item()
        accuracy = labels(model, test)[1].item()
    return {"accuracy": accuracy, "mass": mass}


EXPERIMENTS = {"recall": recall, "sort": sort, "hull": hull, "spans": spans, "lexicon": lexicon}


def mixed_sizes(tasks: dict, seed: int):
    """Batches of 128 whose number of items changes from batch to batch."""
    generator = torch.Generator().manual_seed(seed)
    sizes = list(tasks)
    while True:
        count = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        yield tasks[count].batch(128, generator)


def stored_sizes(stored: dict[int, PointingBatch], seed: int):
    """The same from stored examples: hulls are slow to compute."""
    generator = torch.Generator().manual_seed(seed)
    sizes = list(stored)
    while True:
        count = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        rows = torch.randint(len(stored[count].inputs), (128,), generator=generator)
        yield PointingBatch(stored[count].inputs[rows], stored[count].targets[rows])


def pointing(model, batch: PointingBatch):
    """Cross-entropy of the right place at every step, and the share of right places."""
    scores, asked = model(batch.inputs, batch.targets), batch.targets != IGNORE
    right = scores.argmax(-1)[asked] == batch.targets[asked]
    loss = F.cross_entropy(scores[asked], batch.targets[asked])
    return loss, right.float().mean()


def span(model, batch):
    """Cross-entropy of both ends, and the share of spans with both ends right."""
    scores = model(batch.context, batch.question)
    loss = F.cross_entropy(scores[:, 0], batch.start) + F.cross_entropy(scores[:, 1], batch.end)
    start, end = scores.argmax(-1).T
    return loss, ((start == batch.start) & (end == batch.end)).float().mean()


def labels(model, batch):
    """Cross-entropy and accuracy of the class of a sentence."""
    logits = model(batch.tokens, batch.flags)
    right = logits.argmax(-1) == batch.labels
    return F.cross_entropy(logits, batch.labels), right.float().mean()


def hull_score(points, target, answer) -> tuple[bool, bool, float]:
    """Same polygon? Simple polygon? Share of the true hull's area (0 where it is not simple)."""
    stop = len(points)
    right = target[: (target == stop).nonzero()[0, 0]].tolist()
    ends = (answer == stop).nonzero()
    given = answer[: ends[0, 0] if len(ends) else None].tolist()  # without an end: too long
    turns = [given[k:] + given[:k] for k in range(len(given))]
    simple = is_simple(points, given)
    share = abs(polygon_area(points, given)) / polygon_area(points, right) if simple else 0.0
    return right in turns, simple, share


def is_simple(points, corners: list[int]) -> bool:
    """Whether a polygon has at least three different corners and no two sides that cross."""
    if len(corners) < 3 or len(set(corners)) < len(corners):
        return False
    a = points[corners].double()
    b = a.roll(-1, 0)

    def side(p, q, r):
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) > (q[..., 1] - p[..., 1]) * (
            r[..., 0] - p[..., 0]
        )

    first, second = a[:, None], b[:, None]
    crosses = (side(first, second, a[None]) != side(first, second, b[None])) & (
        side(a[None], b[None], first) != side(a[None], b[None], second)
    )
    places = torch.arange(len(corners))
    apart = (places[:, None] - places[None]).abs()
    neighbors = (apart <= 1) | (apart == len(corners) - 1)
    return not bool((crosses & ~neighbors).any())
