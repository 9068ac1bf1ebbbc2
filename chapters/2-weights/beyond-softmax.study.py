"""Which weights keep their loss at 16 times the length, and what small models need of softmax."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from attnlib.attend import attend
from attnlib.models.ablated_language import ABLATIONS
from attnlib.models.context_broadcasting import broadcast_context
from attnlib.models.entmax_layer import EntmaxAttention
from attnlib.models.language import DecoderLM
from attnlib.models.vision import VisionTransformer
from attnlib.score.compare import dot_product
from attnlib.score.cosine import cosine
from attnlib.study import grid
from attnlib.tasks.grammar import Grammar, GrammarBatch, encode
from attnlib.tasks.markov import Markov
from attnlib.tasks.recall import MultiQueryRecall
from attnlib.tasks.shapes import ColoredShapes
from attnlib.training import evaluate, train
from attnlib.weight.entmax import entmax15
from attnlib.weight.sigmoid import sigmoid
from attnlib.weight.signed import signed
from attnlib.weight.softmax import softmax
from attnlib.weight.softplus import length_scaled_softplus, reweighted_softplus, softplus
from attnlib.weight.visible_keys import visible_keys

TEST_SEED = 10_000
TRAINED, LENGTHS = 32, (32, 64, 128, 256, 512)
SIZE = {"width": 64, "heads": 4, "layers": 2}
STEPS = 300
TEXTS = {"grammar": Grammar, "markov": Markov}
RECALL = MultiQueryRecall(pairs=4, keys=16, values=16, length=24)


class TenTimes(nn.Module):
    """Ten times a parameter, which so learns ten times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


def exp_alone(scores: Tensor, support: Tensor) -> Tensor:
    """e^s without a division."""
    return scores.exp().masked_fill(~support, 0.0)


def softplus_alone(scores: Tensor, support: Tensor) -> Tensor:
    """log(1 + e^s) without a division."""
    return nn.functional.softplus(scores).masked_fill(~support, 0.0)


def over_n(weight, scores: Tensor, support: Tensor) -> Tensor:
    """Weights that are divided by the number of keys, and not by their sum."""
    return weight(scores, support) / visible_keys(support, scores.dtype)


WEIGHTS = {
    "softmax": (softmax, dot_product),
    "sigmoid": (sigmoid, dot_product),
    "sigmoid, b = 0": (partial(sigmoid, bias=0.0), dot_product),
    "softplus": (softplus, dot_product),
    "length-scaled softplus": (length_scaled_softplus, cosine),
    "re-weighted, p = 3": (partial(reweighted_softplus, power=3.0), cosine),
    "re-weighted, p = 15": (partial(reweighted_softplus, power=15.0), cosine),
    "1.5-entmax": (entmax15, dot_product),
    "signed": (signed, dot_product),
    "exp, no division": (exp_alone, dot_product),
    "softplus, no division": (softplus_alone, dot_product),
    "exp, over n": (partial(over_n, exp_alone), dot_product),
    "softplus, over n": (partial(over_n, softplus_alone), dot_product),
}
"""Weight and score by name; the softplus family compares directions, as its paper does."""

COMPARED = (
    "softmax",
    "sigmoid",
    "length-scaled softplus",
    "re-weighted, p = 3",
    "re-weighted, p = 15",
    "1.5-entmax",
)
MIXINGS = ("gated perceptron", "uniform", "random guide", "embedding guide", "key alone", "Taylor")

CELLS = [
    *grid(experiment=["length"], weight=list(COMPARED), position=["alibi", "rope"]),
    *grid(experiment=["length"], weight=["signed"], position=["rope"]),
    *grid(
        experiment=["text"], weight=["softmax", "1.5-entmax"], text=["grammar"], length=[TRAINED]
    ),
    *grid(
        experiment=["text"],
        weight=[
            "softmax",
            "softplus",
            "exp, over n",
            "softplus, over n",
            "exp, no division",
            "softplus, no division",
        ],
        text=["grammar"],
        length=[64],
    ),
    *grid(
        experiment=["text"],
        weight=["softmax", "sigmoid", "sigmoid, b = 0"],
        text=["grammar"],
        length=[4, 128],
    ),
    *grid(experiment=["mixing"], mixing=list(MIXINGS), stack=["alone", "hybrid"]),
    *grid(experiment=["mixing"], mixing=["softmax"], stack=["alone"]),
    *grid(experiment=["mixing on markov"], mixing=["softmax", "gated perceptron"]),
    *grid(experiment=["alpha"], text=["grammar", "markov"]),
    *grid(experiment=["broadcast"], broadcast=[True, False]),
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The measured numbers of one cell with one seed."""
    cell = dict(cell)
    return EXPERIMENTS[cell.pop("experiment")](seed=seed, **cell)


def operator(weight: str):
    """Attention with this weight, as an operator of the models."""
    function, score = WEIGHTS[weight]

    def attention(query, key, value, *, score_mod=None, is_causal=False):
        return attend(
            query,
            key,
            value,
            score=score,
            weight=function,
            score_mod=score_mod,
            is_causal=is_causal,
        )

    return attention


def length(seed: int, weight: str, position: str) -> dict:
    """Trained on 32 words, tested with up to 480 words of other documents before the same 32.

    The loss above the best possible on those 32; how many keys their rows read, as the exponential
    of the entropy of the weights; the sum of a row; the mean cosine between tokens after the last
    block.
    """
    model = language_model("grammar", operator(weight), position, seed)
    untrained = token_cosine(model)
    fit(model, Grammar(length=TRAINED), seed, batch=32)
    numbers = {"cosine": token_cosine(model), "untrained cosine": untrained}
    for n in LENGTHS:
        batch = distracted(32, n)
        rows = read_weights(model, batch.tokens[:4])
        numbers[f"excess at {n}"] = excess(model, batch)
        numbers[f"keys at {n}"] = math.exp(mean_entropy(rows.abs()))
        numbers[f"sum at {n}"] = rows.sum(-1).mean().item()
    return numbers


def distracted(size: int, length: int) -> GrammarBatch:
    """The first 32 words of `size` documents, after `length` - 32 words of other documents.

    The 32 words and the words right before them are the same for every length.
    """
    judged = Grammar(length=TRAINED).batch(size, TEST_SEED)
    generator, before = torch.Generator().manual_seed(TEST_SEED + 1), []
    for _ in range(size):
        words: list[str] = []
        while len(words) < max(LENGTHS) - TRAINED:
            words += Grammar().document(generator).words
        before.append(encode(words)[len(words) - (length - TRAINED) :])
    before = torch.stack(before)
    tokens = torch.cat((before, judged.tokens), dim=1)
    return judged._replace(tokens=tokens)


def text(seed: int, weight: str, text: str, length: int) -> dict:
    """Loss above the best possible after training at this length, positions by ALiBi."""
    model = language_model(text, operator(weight), "alibi", seed)
    return {"excess": trained_excess(model, TEXTS[text](length=length), seed)}


def mixing(seed: int, mixing: str, stack: str) -> dict:
    """Recall of four pairs by two layers: both ablated, or the second one with softmax."""
    model = ablated(RECALL.vocabulary, mixing, seed, standard=(1,) if stack == "hybrid" else ())
    train(model, RECALL.batches(64, seed), steps=500, seed=seed, progress=False)
    tests = RECALL.batches(256, TEST_SEED)
    return {"accuracy": evaluate(model, tests, count=2).accuracy}


def mixing_on_markov(seed: int, mixing: str) -> dict:
    """The control: a text in which the last word says all."""
    text = Markov(length=TRAINED)
    model = ablated(text.vocabulary, mixing, seed)
    return {"excess": trained_excess(model, text, seed)}


def alpha(seed: int, text: str) -> dict:
    """Entmax whose heads learn alpha: loss, and the least and greatest alpha of the eight heads."""
    operator = EntmaxAttention(heads=SIZE["heads"])
    # Adam moves a number by at most its learning rate a step: too little for alpha in 300 steps.
    register_parametrization(operator, "sparsity", TenTimes())
    model = language_model(text, operator, "alibi", seed)
    numbers = {"excess": trained_excess(model, TEXTS[text](length=TRAINED), seed)}
    alphas = torch.cat([block.attention.operator.alphas() for block in model.blocks])
    return numbers | {"least": alphas.min().item(), "greatest": alphas.max().item()}


def broadcast(seed: int, broadcast: bool) -> dict:
    """A small vision transformer with or without the mean of all tokens in its perceptrons."""
    task = ColoredShapes(size=16, clutter=0.1)
    model = VisionTransformer(
        16, patch=2, classes=task.classes, channels=3, **SIZE, position="learned", seed=seed
    )
    if broadcast:
        broadcast_context(model)
    images = task.batch(64, TEST_SEED).images
    untrained = mean_entropy(model(images, return_weights=True)[1])
    train(model, task.batches(64, seed), steps=STEPS, seed=seed, progress=False)
    return {
        "untrained entropy": untrained,
        "entropy": mean_entropy(model(images, return_weights=True)[1]),
        "accuracy": evaluate(model, task.batches(256, TEST_SEED), count=2).accuracy,
    }


def language_model(text: str, operator, position: str, seed: int) -> DecoderLM:
    """The small decoder of all experiments on text."""
    vocabulary = TEXTS[text]().vocabulary
    return DecoderLM(vocabulary, **SIZE, operator=operator, position=position, seed=seed)


def ablated(vocabulary: int, mixing: str, seed: int, standard: tuple = ()) -> DecoderLM:
    """The same decoder with another way to mix, but softmax in the layers named in `standard`."""
    options = dict(SIZE, position="rope", max_length=64, seed=seed)
    if mixing == "softmax":
        return DecoderLM(vocabulary, **options)
    return ABLATIONS[mixing](vocabulary, standard=standard, **options)


def fit(model: nn.Module, text, seed: int, batch: int) -> None:
    """Train on fresh windows of the text."""
    train(model, text.batches(batch, seed), steps=STEPS, seed=seed, progress=False)


def trained_excess(model: nn.Module, text, seed: int) -> float:
    """Loss above the best possible after training on 1024 tokens a step, whatever the length."""
    fit(model, text, seed, batch=1024 // text.length)
    return excess(model, text.batch(4096 // text.length, TEST_SEED))


@torch.no_grad()
def excess(model: nn.Module, batch, last: int = TRAINED) -> float:
    """Mean loss minus the best possible, over the last tokens of each window (nats a word)."""
    logits = model(batch.tokens)[:, -last:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets[:, -last:].flatten())
    return (loss + batch.probabilities[:, -last:].log().mean()).item()


@torch.no_grad()
def read_weights(model: DecoderLM, tokens: Tensor, last: int = TRAINED) -> Tensor:
    """The weights of the last rows of every layer and head."""
    return model(tokens, return_weights=True)[1][..., -last:, :]


def mean_entropy(weights: Tensor) -> float:
    """Mean entropy (nats) of rows of weights."""
    shares = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.special.entr(shares).sum(-1).mean().item()


@torch.no_grad()
def token_cosine(model: DecoderLM) -> float:
    """Mean cosine between different tokens of a text after the last block."""
    tokens = Grammar(length=TRAINED).batch(16, TEST_SEED).tokens
    x = model.position(model.embedding(tokens))
    for block in model.blocks:
        x = block(x)
    directions = nn.functional.normalize(x, dim=-1)
    cosines = directions @ directions.mT
    return cosines[:, ~torch.eye(TRAINED, dtype=torch.bool)].mean().item()


EXPERIMENTS = {
    "length": length,
    "text": text,
    "mixing": mixing,
    "mixing on markov": mixing_on_markov,
    "alpha": alpha,
    "broadcast": broadcast,
}
