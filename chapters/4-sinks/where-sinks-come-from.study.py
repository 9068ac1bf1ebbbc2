"""When does a small model grow a sink, what prevents it, and what happens without it?

normalizer: the first token's share of the weight under five weights, on two texts.
no start: the same weights on a text without its start token, where no key is a plain constant.
sharpness: the first token's share against how sharp the bigram table is.
emergence: its share against training, learning rate, weight decay and amount of data.
peak: three layers with perceptrons; does the first token's residual outgrow the others?
streaming: nats a token up to 20 times the training length, with 0, 1 and 4 kept sinks.
class token: accuracy of a causal image model with its class token first and last.
secondary: a vector along the first token's residual, added to another token.
value: the loss without the start token's value, with another one, and without its key.
stream controls: a kept sink without its value, at its place in the text, another token kept.
residuals: the first token's residual in each layer, before and after training.
"""

from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from attnlib.interventions.hooks import hidden_key, injected, replaced_value
from attnlib.interventions.streaming import streamed
from attnlib.memory.streaming_attention import streaming_attention
from attnlib.models.causal_vision import CausalVision
from attnlib.models.language import DecoderLM
from attnlib.models.small_sink_models import AttentionOnlyLM
from attnlib.probes.layers import attention_of
from attnlib.probes.recording import record
from attnlib.probes.sinks import (
    mean_weight,
    residual_norms,
    row_shares,
    sink_share,
    times_the_others,
    value_norms,
)
from attnlib.study import grid
from attnlib.tasks.bigram_backcopy import BigramBackcopy
from attnlib.tasks.digits import Digits
from attnlib.tasks.grammar import Grammar, best_loss
from attnlib.training import evaluate, train
from attnlib.watched_training import train_watched
from attnlib.weight.key_bias_attention import KeyBiasAttention
from attnlib.weight.null_logit_attention import NullLogitAttention
from attnlib.weight.rectified_attention import relu_attention
from attnlib.weight.sigmoid_attention import sigmoid_attention
from attnlib.weight.softmax_attention import softmax_attention

TEST_SEED = 10_000
LENGTH, STEPS, LONG, RATE = 32, 300, 900, 0.01
BACKCOPY, LONGER = BigramBackcopy(length=LENGTH), BigramBackcopy(length=LENGTH + 1)
GRAMMAR, GRAMMAR_STEPS = Grammar(length=64), 300
WEIGHTS = {
    "softmax": softmax_attention,
    "null logit": NullLogitAttention,
    "key bias": KeyBiasAttention,
    "sigmoid": partial(sigmoid_attention, bias=0.0),
    "relu": relu_attention,
}
BASE = {"learning_rate": 0.005, "weight_decay": 0.0, "sequences": None, "steps": STEPS}
CHANGES = {
    "none": {},
    "learning rate 0.02": {"learning_rate": 0.02},
    "learning rate 0.001": {"learning_rate": 0.001},
    "weight decay 1": {"weight_decay": 1.0},
    "64 sequences": {"sequences": 64},
    "900 steps": {"steps": LONG},
}
LOOKS = 20
SIZES = (0, 1, 2, 4, 8, 16)
PLACE = 12

CELLS = [
    *grid(part=["normalizer"], text=["backcopy"], weight=list(WEIGHTS)),
    *grid(part=["no start"], weight=list(WEIGHTS)),
    *grid(part=["sharpness"], sharpness=[0.5, 2.0, 4.0]),
    {"part": "streaming", "text": "backcopy"},
    *grid(part=["secondary"], layers=[1, 2]),
    *grid(part=["emergence"], change=list(CHANGES)),
    *grid(part=["class token"], place=["first", "last", "last, softened"]),
    {"part": "peak", "optimizer": "adam", "weight": "softmax"},
    {"part": "peak", "optimizer": "sgd", "weight": "softmax"},
    {"part": "streaming", "text": "backcopy", "layers": 2},
    {"part": "streaming", "text": "grammar"},
    *grid(part=["normalizer"], text=["grammar"], weight=["softmax", "sigmoid"]),
    *grid(
        part=["normalizer"],
        text=["backcopy, 900 steps"],
        weight=["softmax", "null logit", "key bias"],
    ),
    *grid(part=["value"], steps=[STEPS, LONG]),
    *grid(part=["stream controls"], layers=[1, 2]),
    *grid(part=["residuals"], optimizer=["adam", "sgd"]),
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The numbers of one cell."""
    parts = {
        "normalizer": normalizer,
        "sharpness": sharpness_of_the_table,
        "no start": no_start,
        "emergence": emergence,
        "peak": peak,
        "streaming": streaming,
        "class token": class_token,
        "secondary": secondary,
        "value": value_of_the_sink,
        "stream controls": stream_controls,
        "residuals": residuals,
    }
    options = {name: given for name, given in cell.items() if name != "part"}
    return parts[cell["part"]](seed, **options)


# ---- models and measures


def backcopy_model(
    seed: int, weight: str = "softmax", layers: int = 1, heads: int = 1
) -> AttentionOnlyLM:
    """No perceptron, rotary positions; one layer of one head unless more are asked for."""
    return AttentionOnlyLM(
        BACKCOPY.vocabulary,
        width=64,
        heads=heads,
        layers=layers,
        operator=WEIGHTS[weight],
        position="rope",
        seed=seed,
    )


def grammar_model(seed: int, weight: str = "softmax") -> DecoderLM:
    """Two layers of four heads with perceptrons, rotary positions."""
    return DecoderLM(
        GRAMMAR.vocabulary,
        width=64,
        heads=4,
        layers=2,
        operator=WEIGHTS[weight],
        position="rope",
        seed=seed,
    )


def trained_on_backcopy(model, seed: int, batches=None, **options):
    """The usual training: 300 steps of AdamW at a constant rate, 32 sequences each."""
    given = {"steps": STEPS, "learning_rate": RATE, "warmup": 20} | options
    return train_watched(model, batches or BACKCOPY.batches(32, seed), seed=seed, **given)


def backcopy_facts(model, tests, task=BACKCOPY) -> dict:
    """Shares of the first token, by kind of query; sizes of its value; losses in nats.

    A share is a part of what a row gives to tokens, a weight is the number itself: they differ
    where a null or a key bias takes a part, or rows need not sum to one. Of several layers the one
    with most (value: least) counts.
    """
    seen = record(model, tests.tokens)
    shares = row_shares(seen.weights)[..., 0].mean(2)
    weights = seen.weights[..., 0].mean(2)
    triggers = task.is_trigger(tests.tokens)
    plain = ~triggers & (torch.arange(LENGTH) > 0)
    losses = cross_entropy(seen.logits.mT, tests.targets, reduction="none")
    return {
        "share": float(max(layer[plain].mean() for layer in shares)),
        "share on triggers": float(max(layer[triggers].mean() for layer in shares)),
        "weight": float(max(layer[plain].mean() for layer in weights)),
        "sink": float(sink_share(row_shares(seen.weights))),
        "row sum": float(seen.weights.sum(-1).mean(2)[:, plain].mean()),
        "value": float(times_the_others(value_norms(seen)).mean((1, 2)).min()),
        "residual": float(times_the_others(residual_norms(seen)).mean(1).max()),
        "excess": float(losses.mean()) - best_loss(tests),
        "trigger loss": float(losses[triggers].mean()),
    }


def grammar_facts(model, tests) -> dict:
    """The same for the text from the grammar, where no token is a trigger."""
    seen = record(model, tests.tokens)
    shares = row_shares(seen.weights)
    first = mean_weight(shares).mean(1)
    return {
        "share": float(first.max()),
        "mean share": float(first.mean()),
        "weight": float(mean_weight(seen.weights).mean(1).max()),
        "sink": float(sink_share(shares)),
        "row sum": float(seen.weights.sum(-1).mean()),
        "value": float(times_the_others(value_norms(seen)).mean(1).min()),
        "excess": float(cross_entropy(seen.logits.mT, tests.targets)) - best_loss(tests),
    }


# ---- the parts


def normalizer(seed: int, text: str, weight: str) -> dict:
    """One weight on one text; everything else is the same in all cells of a text."""
    if text.startswith("backcopy"):
        model = backcopy_model(seed, weight)
        trained_on_backcopy(model, seed, steps=LONG if text.endswith("900 steps") else STEPS)
        return backcopy_facts(model, BACKCOPY.batch(256, TEST_SEED))
    model = grammar_model(seed, weight)
    train(model, GRAMMAR.batches(16, seed), steps=GRAMMAR_STEPS, seed=seed, progress=False)
    return grammar_facts(model, GRAMMAR.batch(64, TEST_SEED))


def headless(batch):
    """A batch whose sequences begin with a letter: the start token is cut off."""
    return type(batch)(*(column[:, 1:] for column in batch))


def no_start(seed: int, weight: str) -> dict:
    """The same training on the same text without its start token.

    Letters are the queries that have nothing to copy, from the third token on; shares are parts of
    what a row gives to tokens.
    """
    model = backcopy_model(seed, weight)
    trained_on_backcopy(model, seed, map(headless, LONGER.batches(32, seed)))
    tests = headless(LONGER.batch(256, TEST_SEED))
    seen = record(model, tests.tokens)
    triggers = BACKCOPY.is_trigger(tests.tokens)
    letters = ~triggers & (torch.arange(LENGTH) > 1)
    weights = seen.weights[0, :, 0]
    shares = row_shares(weights)
    nats = excess(seen.logits, tests)
    return {
        "first": float(shares[..., 0][letters].mean()),
        "own": float(shares.diagonal(dim1=-2, dim2=-1)[letters].mean()),
        "row sum": float(weights.sum(-1)[letters].mean()),
        "row sum on triggers": float(weights.sum(-1)[triggers].mean()),
        "excess": float(nats.mean()),
        "letters": float(nats[letters].mean()),
        "trigger loss": float(nats[triggers].mean()),
    }


def sharpness_of_the_table(seed: int, sharpness: float) -> dict:
    """The usual model on a flatter or sharper table; sharpness 1 is in the part `normalizer`."""
    task = BigramBackcopy(length=LENGTH, sharpness=sharpness)
    model = backcopy_model(seed)
    trained_on_backcopy(model, seed, task.batches(32, seed))
    return backcopy_facts(model, task.batch(256, TEST_SEED), task)


def emergence(seed: int, change: str) -> dict:
    """The share of the first token and the excess loss, at 15 moments of training."""
    options = BASE | CHANGES[change]
    sequences = options.pop("sequences")
    tests = BACKCOPY.batch(256, TEST_SEED)
    batches = BACKCOPY.batches(32, seed)
    if sequences is not None:
        batches = repeated(BACKCOPY.batch(sequences, seed), 32, seed)
    model = backcopy_model(seed)
    seen = train_watched(
        model,
        batches,
        warmup=20,
        every=LOOKS * options["steps"] // STEPS,
        watch=lambda model, step: backcopy_facts(model, tests),
        seed=seed,
        **options,
    )
    return {
        f"{name} at {step}": facts[name]
        for step, facts in zip(seen.steps, seen.seen, strict=True)
        for name in ("share", "share on triggers", "value", "excess")
    }


def repeated(batch, size: int, seed: int):
    """Batches drawn again and again from the same few sequences."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(batch.tokens), (size,), generator=generator)
        yield type(batch)(*(column[rows] for column in batch))


def peak(seed: int, optimizer: str, weight: str) -> dict:
    """Three layers of one head with perceptrons and learned positions, as in the paper's task."""
    model = DecoderLM(
        BACKCOPY.vocabulary,
        width=64,
        heads=1,
        layers=3,
        operator=WEIGHTS[weight],
        position="learned",
        max_length=LENGTH,
        seed=seed,
    )
    tests = BACKCOPY.batch(256, TEST_SEED)
    at_first = backcopy_facts(model, tests)["residual"]
    rate = {"adam": 0.01, "sgd": 0.3}[optimizer]
    trained_on_backcopy(model, seed, optimizer=optimizer, learning_rate=rate, steps=500)
    return backcopy_facts(model, tests) | {"residual before training": at_first}


def streaming(seed: int, text: str, layers: int = 1) -> dict:
    """Nats above the best possible, in the training length and up to 20 times as far."""
    if text == "backcopy":
        length, make = LENGTH, BigramBackcopy
        model = backcopy_model(seed, layers=layers, heads=layers)
        trained_on_backcopy(model, seed)
    else:
        length, make = GRAMMAR.length, Grammar
        model = grammar_model(seed)
        train(model, GRAMMAR.batches(16, seed), steps=GRAMMAR_STEPS, seed=seed, progress=False)
    tests = make(length=20 * length).batch(8, TEST_SEED)
    facts = {"full": excess(model(tests.tokens), tests)}
    for sinks in (0, 1, 4):
        with streamed(model, sinks=sinks, window=length - sinks):
            facts[f"{sinks} sinks"] = excess(model(tests.tokens), tests)
    facts["recomputed"] = recomputed(model, tests, length)
    buckets = {"inside": slice(0, length), "to 5": slice(length, 5 * length)}
    buckets |= {"to 20": slice(5 * length, 20 * length), "last": slice(19 * length, 20 * length)}
    return {
        f"{name}, {bucket}": float(nats[:, part].nanmean())
        for name, nats in facts.items()
        for bucket, part in buckets.items()
    }


@torch.no_grad()
def excess(logits, tests) -> torch.Tensor:
    """-log p of the model minus -log p of the text itself, for each token."""
    return cross_entropy(logits.mT, tests.targets, reduction="none") + tests.probabilities.log()


@torch.no_grad()
def recomputed(model, tests, length: int) -> torch.Tensor:
    """Every eighth token, read afresh from the last `length` tokens; the others are not asked."""
    nats = torch.full(tests.tokens.shape, torch.nan)
    for last in range(length - 1, tests.tokens.shape[1], 8):
        part = slice(last - length + 1, last + 1)
        window = type(tests)(*(column[:, part] for column in tests))
        nats[:, last] = excess(model(window.tokens), window)[:, -1]
    return nats


def class_token(seed: int, place: str) -> dict:
    """Accuracy on handwritten digits; softened: share 0.5 of both directions for 100 steps."""
    model = CausalVision(8, 2, 10, class_token=place.split(",")[0], width=32, seed=seed)
    batches = Digits().batches(64, seed)
    if place.endswith("softened"):
        model.soften(0.5)
        train(model, batches, steps=100, seed=seed, progress=False)
        model.soften(0.0)
        train(model, batches, steps=300, seed=seed, progress=False)
    else:
        train(model, batches, steps=400, seed=seed, progress=False)
    return {"accuracy": evaluate(model, [Digits("test").all()]).accuracy}


def secondary(seed: int, layers: int) -> dict:
    """Scores of token 12 after a vector of so many times the usual length went into it.

    One layer of one head, or two layers of two. The vector enters before a layer and lies along the
    first token's residual there, or in a random direction. The score in a layer is the mean weight
    of the later queries on token 12, in the head that has most; the lifetime is the number of
    layers with a score above 0.1, twice the share of a uniform row.
    """
    model = backcopy_model(seed, layers=layers, heads=layers)
    trained_on_backcopy(model, seed)
    tokens = BACKCOPY.batch(64, TEST_SEED).tokens
    plain = record(model, tokens)
    random = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    facts = {}
    for entry in range(layers):
        stream = plain.layers[entry].before
        usual = float(stream[:, 1:].norm(dim=-1).mean())
        for name, along in (("sink", stream[:, 0].mean(0)), ("random", random)):
            for size in SIZES:
                with injected(model, entry, PLACE, size * usual * along / along.norm()):
                    seen = record(model, tokens)
                later = seen.weights[entry:, :, :, PLACE + 1 :].mean((1, 3))
                scores, primary = later[..., PLACE], later[..., 0]
                cell = f"{name} {size} before {entry}"
                for layer, (score, first) in enumerate(zip(scores, primary, strict=True), entry):
                    facts[f"{cell}: score in layer {layer}"] = float(score.max())
                    facts[f"{cell}: primary in layer {layer}"] = float(first[score.argmax()])
                facts[f"{cell}: lifetime"] = int((scores.amax(-1) > 0.1).sum())
    return facts


def value_of_the_sink(seed: int, steps: int) -> dict:
    """Nats above the best of the trained model, and of the same model with one thing changed.

    The start token's value becomes zero or the mean of the other tokens' values, while its key and
    all weights stay; or its key is hidden; or that of token 5 is. Letters from the third token on.
    """
    model = backcopy_model(seed)
    trained_on_backcopy(model, seed, steps=steps)
    tests = BACKCOPY.batch(256, TEST_SEED)
    triggers = BACKCOPY.is_trigger(tests.tokens)
    letters = ~triggers & (torch.arange(LENGTH) > 1)
    others = record(model, tests.tokens).layers[0].value[:, :, 1:].mean((0, 2)).flatten()
    changes = {
        "intact": ExitStack,
        "value zero": partial(replaced_value, model, 0, 0, 0.0),
        "value of the others": partial(replaced_value, model, 0, 0, others),
        "key hidden": partial(hidden_key, model, 0),
        "key 5 hidden": partial(hidden_key, model, 5),
    }
    facts = {}
    for name, change in changes.items():
        with change():
            nats = excess(model(tests.tokens), tests)
        facts[name] = float(nats.mean())
        facts[f"{name}, letters"] = float(nats[letters].mean())
        facts[f"{name}, triggers"] = float(nats[triggers].mean())
    return facts


@contextmanager
def streamed_in_text_positions(model, *, sinks: int, window: int):
    """`streamed`, but rotary positions are those of the text."""
    attentions = [attention_of(model, layer) for layer in range(len(model.blocks))]
    try:
        for attention in attentions:
            attention.operator = partial(streaming_attention, sinks=sinks, window=window)
        yield model
    finally:
        for attention in attentions:
            attention.operator = softmax_attention


def stream_controls(seed: int, layers: int) -> dict:
    """Caches of 32 places on one stream, judged on the same tokens, all but the first 32.

    Another token kept: the stream without its start token, so that a letter is kept for ever.
    Recomputed: each token from the last 32 alone, or from the start token and the last 31.
    """
    model = backcopy_model(seed, layers=layers, heads=layers)
    trained_on_backcopy(model, seed)
    tests = BigramBackcopy(length=20 * LENGTH).batch(8, TEST_SEED)
    facts = {}
    for sinks in (0, 1, 4):
        with streamed(model, sinks=sinks, window=LENGTH - sinks):
            facts[f"{sinks} sinks"] = excess(model(tests.tokens), tests)
        with streamed_in_text_positions(model, sinks=sinks, window=LENGTH - sinks):
            facts[f"{sinks} sinks, text positions"] = excess(model(tests.tokens), tests)
    with streamed(model, sinks=1, window=LENGTH - 1), ExitStack() as changes:
        for layer in range(layers):
            changes.enter_context(replaced_value(model, layer, 0, 0.0))
        facts["1 sink, value zero"] = excess(model(tests.tokens), tests)
    with streamed(model, sinks=1, window=LENGTH - 1):
        cut = headless(tests)
        nats = excess(model(cut.tokens), cut)
        facts["another token kept"] = torch.cat((nats[:, :1], nats), dim=1)
    facts["recomputed"] = afresh(model, tests, start=False)
    facts["recomputed, start in front"] = afresh(model, tests, start=True)
    buckets = {"all": slice(LENGTH, None), "to 5": slice(LENGTH, 5 * LENGTH)}
    buckets["to 20"] = slice(5 * LENGTH, 20 * LENGTH)
    return {
        f"{name}, {bucket}": float(nats[:, part].mean())
        for name, nats in facts.items()
        for bucket, part in buckets.items()
    }


@torch.no_grad()
def afresh(model, tests, start: bool) -> torch.Tensor:
    """Every token from 32 on, from the last 32 tokens, or from the start token and the last 31."""
    windows = tests.tokens.unfold(1, LENGTH, 1)[:, 1:].clone()
    if start:
        windows[..., 0] = tests.tokens[:, :1]
    logits = torch.cat([model(stream)[None, :, -1] for stream in windows])
    later = type(tests)(*(column[:, LENGTH:] for column in tests))
    return torch.nn.functional.pad(excess(logits, later), (LENGTH, 0))


def residuals(seed: int, optimizer: str) -> dict:
    """The model of the part `peak`: times the others' residual, in each place of the stream.

    Place 0 is what enters the first layer, place l what leaves layer l.
    """
    model = DecoderLM(
        BACKCOPY.vocabulary,
        width=64,
        heads=1,
        layers=3,
        operator=softmax_attention,
        position="learned",
        max_length=LENGTH,
        seed=seed,
    )
    tests = BACKCOPY.batch(256, TEST_SEED)
    before = times_the_others(residual_norms(record(model, tests.tokens))).mean(1)
    rate = {"adam": 0.01, "sgd": 0.3}[optimizer]
    trained_on_backcopy(model, seed, optimizer=optimizer, learning_rate=rate, steps=500)
    after = times_the_others(residual_norms(record(model, tests.tokens))).mean(1)
    facts = {f"before training, place {i}": float(x) for i, x in enumerate(before)}
    facts |= {f"trained, place {i}": float(x) for i, x in enumerate(after)}
    return facts | {"excess": backcopy_facts(model, tests)["excess"]}
