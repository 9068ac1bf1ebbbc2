"""What feature maps keep of softmax weights, whether flow helps recall, and what lies near."""

from functools import cache

import torch
from torch import Tensor, nn

from attnlib.attend import attend
from attnlib.models.blocks import Block
from attnlib.models.language import DecoderLM
from attnlib.models.local_concentration import LocalConcentration
from attnlib.models.vision import VisionTransformer
from attnlib.read.flow_attention import flow_attention
from attnlib.score.compare import dot_product
from attnlib.score.features import feature_product
from attnlib.study import grid
from attnlib.tasks.recall import MultiQueryRecall
from attnlib.training import classification, evaluate, train
from attnlib.weight.division import divided_by_sum
from attnlib.weight.feature_maps.elementwise import elu_plus_one, relu
from attnlib.weight.feature_maps.hedgehog import HedgehogMap
from attnlib.weight.feature_maps.log_normal import matched_exponents
from attnlib.weight.feature_maps.random_features import (
    orthogonal_directions,
    positive_random_features,
)
from attnlib.weight.feature_maps.taylor import taylor
from attnlib.weight.softmax_attention import softmax_attention

# Part "copy": a model learns recall with softmax, then its weights are copied by a feature map.
RECALL = MultiQueryRecall(pairs=6, keys=12, values=12, length=24)
WIDTH, HEADS, LAYERS = 32, 2, 2
HEAD_WIDTH = WIDTH // HEADS
TEACHER_STEPS, COPYING_STEPS, TUNING_STEPS = 700, 300, 200
MAPS = ["hedgehog", "hedgehog, not taught", "elu + 1", "relu", "random", "log-normal", "taylor"]

# Part "recall": one read finds the values of keys; `asked` of the 16 keys are asked for.
ONE_READ = MultiQueryRecall(pairs=16, keys=32, values=32, length=48)
READS = ["softmax", "elu + 1", "sigmoid", "flow"]

# Part "texture": what is near decides, or what is everywhere does.
SIDE = 6
TEXTURE_STEPS = {"near": 700, "everywhere": 200}
VISION = ["softmax", "linear", "linear + local"]

TEST_SEED = 10_000
CELLS = [
    *grid(part=["copy"], teacher=["trained", "untrained"], map=MAPS),
    *grid(part=["recall"], asked=[1, 4, 16], read=READS),
    *grid(part=["texture"], task=["near", "everywhere"], attention=VISION),
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """The numbers of one cell; see the part's own function."""
    if cell["part"] == "copy":
        return copied(cell["teacher"] == "trained", cell["map"], seed)
    if cell["part"] == "recall":
        return recalled(cell["asked"], cell["read"], seed)
    return seen(cell["task"], cell["attention"], seed)


# --- part "copy" ----------------------------------------------------------------------------------


def copied(trained: bool, name: str, seed: int) -> dict:
    """How a map copies a teacher's softmax weights, and how well the teacher works with it.

    `divergence` is KL(softmax || linear), `entropy_gap` the linear weights' entropy less the
    softmax weights' (nats, means over rows), `order` the rank correlation of weight and q . k.
    """
    model, queries, keys = teacher(trained, seed)
    layers = [
        Converted(*maps_of(name, query, key, seed))
        for query, key in zip(queries, keys, strict=True)
    ]
    if name == "hedgehog":
        teach(layers, model, seed)
    with torch.no_grad():
        compared = [
            compare(layer, query, key)
            for layer, query, key in zip(layers, queries, keys, strict=True)
        ]
    divergence, gap, order = torch.tensor(compared).mean(0).tolist()
    converted, tuned = converted_accuracy(model, layers, seed)
    return {
        "divergence": divergence,
        "entropy_gap": gap,
        "order": order,
        "teacher": model_accuracy(model),
        "converted": converted,
        "tuned": tuned,
    }


@cache
def teacher(trained: bool, seed: int) -> tuple[DecoderLM, list[Tensor], list[Tensor]]:
    """A model with softmax, and the queries and keys of its layers on a test batch."""
    model = language_model(seed)
    if trained:
        batches = RECALL.batches(32, seed)
        train(model, batches, steps=TEACHER_STEPS, seed=seed, progress=False)
    return model, *queries_and_keys(model, RECALL.batch(64, TEST_SEED).tokens)


def language_model(seed: int) -> DecoderLM:
    """Two layers with two heads of width 16."""
    return DecoderLM(
        RECALL.vocabulary,
        width=WIDTH,
        heads=HEADS,
        layers=LAYERS,
        position="learned",
        max_length=RECALL.length,
        seed=seed,
    )


@torch.no_grad()
def queries_and_keys(model: DecoderLM, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The queries and keys (batch, heads, N, D) of every layer of a model with softmax."""
    queries, keys = [], []

    def recording(query, key, value, *, is_causal):
        queries.append(query)
        keys.append(key)
        return softmax_attention(query, key, value, is_causal=is_causal)

    for block in model.blocks:
        block.attention.operator = recording
    model(tokens)
    for block in model.blocks:
        block.attention.operator = softmax_attention
    return queries, keys


class Converted(nn.Module):
    """Linear attention with a map of queries and one of keys, in its dense form."""

    def __init__(self, query_map, key_map):
        super().__init__()
        self.query_map, self.key_map = query_map, key_map

    def forward(self, query, key, value, *, is_causal=False, return_weights=False):
        return attend(
            query,
            key,
            value,
            score=feature_product(self.query_map, self.key_map),
            weight=divided_by_sum,
            is_causal=is_causal,
            return_weights=return_weights,
        )


def maps_of(name: str, query: Tensor, key: Tensor, seed: int):
    """The map of queries and the map of keys for one layer."""
    if name.startswith("hedgehog"):
        return HedgehogMap(HEAD_WIDTH, HEADS), HedgehogMap(HEAD_WIDTH, HEADS)
    if name == "log-normal":
        alpha, beta = matched_exponents(query.std().item(), key.std().item())
        return exponential(alpha, (-1,)), exponential(beta, (-2, -1))
    if name == "random":
        generator = torch.Generator().manual_seed(seed)
        directions = orthogonal_directions(HEAD_WIDTH, 2 * HEAD_WIDTH, generator=generator)
        random = positive_random_features(directions)
        return random, random
    fixed = {"elu + 1": elu_plus_one, "relu": relu, "taylor": taylor(3)}[name]
    return fixed, fixed


def exponential(factor: float, dims: tuple[int, ...]):
    """e^(factor x) over its largest entry in `dims`, which cancels where rows are divided."""
    return lambda x: (factor * x - (factor * x).amax(dims, keepdim=True)).exp()


def teach(layers: list[Converted], model: DecoderLM, seed: int) -> None:
    """Move the maps until the linear weights have the smallest cross-entropy with the teacher's."""

    def cross_entropy(layers, batch):
        queries, keys = queries_and_keys(model, batch.tokens)
        losses = [
            -(softmax_weights(query, key) * log_weights(layer, query, key)).sum(-1).mean()
            for layer, query, key in zip(layers, queries, keys, strict=True)
        ]
        return sum(losses), torch.zeros(())

    train(
        nn.ModuleList(layers),
        RECALL.batches(32, seed + 100),
        steps=COPYING_STEPS,
        learning_rate=1e-2,
        objective=cross_entropy,
        seed=seed,
        progress=False,
    )


def softmax_weights(query: Tensor, key: Tensor) -> Tensor:
    """The teacher's causal weights."""
    return softmax_attention(query, key, unit_values(key), is_causal=True)


def log_weights(layer: Converted, query: Tensor, key: Tensor) -> Tensor:
    """The logarithms of the copy's causal weights, none below log 1e-6."""
    return layer(query, key, unit_values(key), is_causal=True).clamp(min=1e-6).log()


def unit_values(key: Tensor) -> Tensor:
    """Values whose read is the row of weights itself."""
    return torch.eye(key.shape[-2]).expand(*key.shape[:-2], -1, -1)


def compare(layer: Converted, query: Tensor, key: Tensor) -> tuple[float, float, float]:
    """(divergence, entropy gap, rank correlation with q . k) of one layer's weights."""
    soft, log_linear = softmax_weights(query, key), log_weights(layer, query, key)
    log_soft = soft.clamp(min=1e-6).log()
    linear = log_linear.exp()
    divergence = (soft * (log_soft - log_linear)).sum(-1).mean()
    gap = (soft * log_soft).sum(-1).mean() - (linear * log_linear).sum(-1).mean()
    similar = feature_product(layer.query_map, layer.key_map)(query, key)
    return divergence.item(), gap.item(), rank_correlation(similar, dot_product(query, key)).item()


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's correlation within the rows, averaged over them."""
    x, y = (rows.argsort(-1).argsort(-1).double() for rows in (x, y))
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).mean()


def model_accuracy(model: DecoderLM) -> float:
    """Share of right answers on test sequences."""
    return evaluate(model, RECALL.batches(256, TEST_SEED), count=4).accuracy


def converted_accuracy(model: DecoderLM, layers: list[Converted], seed: int) -> tuple[float, float]:
    """Accuracy of a copy of the model with the new attention, before and after some training."""
    student = language_model(seed)
    student.load_state_dict(model.state_dict())
    for block, layer in zip(student.blocks, layers, strict=True):
        block.attention.operator = layer
    before = model_accuracy(student)
    batches = RECALL.batches(32, seed + 200)
    train(student, batches, steps=TUNING_STEPS, learning_rate=1e-3, seed=seed, progress=False)
    return before, model_accuracy(student)


# --- part "recall" --------------------------------------------------------------------------------


def recalled(asked: int, read: str, seed: int) -> dict:
    """Accuracy and loss of one read that finds the values of `asked` of the 16 listed keys."""
    model = OneRead(asked, read, seed)
    train(
        model,
        ONE_READ.batches(64, seed),
        steps=500,
        learning_rate=1e-2,
        objective=asked_only,
        seed=seed,
        progress=False,
    )
    tests = ONE_READ.batches(512, TEST_SEED)
    measured = evaluate(model, tests, count=16 // asked + 2, objective=asked_only)
    return {"accuracy": measured.accuracy, "loss": measured.loss}


class OneRead(nn.Module):
    """Keys of width 16 with their values are listed; some of the keys come again as queries."""

    def __init__(self, asked: int, read: str, seed: int, width: int = 16):
        super().__init__()
        self.asked = asked
        self.read = operator(read)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = nn.Embedding(ONE_READ.keys, width)
            self.key = nn.Embedding(ONE_READ.keys, width)
            self.value = nn.Embedding(ONE_READ.values, width)
            self.to_logits = nn.Linear(width, ONE_READ.values)
        self.key.weight.data.copy_(self.query.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        listed, queries = tokens[:, : 2 * ONE_READ.pairs], tokens[:, 2 * ONE_READ.pairs :]
        keys, values = listed[:, ::2], listed[:, 1::2] - ONE_READ.keys
        query = self.query(queries[:, : self.asked])
        read = self.read(query[:, None], self.key(keys)[:, None], self.value(values)[:, None])
        return self.to_logits(read[:, 0])


def asked_only(model: OneRead, batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of the answers to the keys that are asked for."""
    first = 2 * ONE_READ.pairs
    targets = batch.targets[:, first : first + model.asked] - ONE_READ.keys
    return classification(model, (batch.tokens, targets))


def operator(name: str):
    """An attention without a mask, by its name in this study."""
    if name == "softmax":
        return softmax_attention
    if name == "flow":
        return flow_attention
    feature_map = {"elu + 1": elu_plus_one, "linear": elu_plus_one, "sigmoid": torch.sigmoid}[name]
    return Converted(feature_map, feature_map)


# --- part "texture" -------------------------------------------------------------------------------


def seen(task: str, attention: str, seed: int) -> dict:
    """Accuracy of a small vision model on 6 x 6 pixels of +1 and -1."""
    name, _, local = attention.partition(" + ")
    read = operator(name)
    model = VisionTransformer(
        SIDE, 1, 4, width=WIDTH, heads=4, layers=1, operator=read, pooling="mean", seed=seed
    )
    if local:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.blocks = nn.ModuleList([LocalBlock(WIDTH, 4, operator=read)])
    generator = torch.Generator().manual_seed(seed)
    steps = TEXTURE_STEPS[task]
    batches = (PICTURES[task](64, generator) for _ in range(steps))
    train(model, batches, steps=steps, seed=seed, progress=False)
    generator = torch.Generator().manual_seed(TEST_SEED)
    tests = [PICTURES[task](256, generator) for _ in range(4)]
    return {"accuracy": evaluate(model, tests, count=4).accuracy}


class LocalBlock(Block):
    """A block with local concentration between attention and perceptron, as in L2ViT."""

    def __init__(self, width: int, heads: int, **options):
        super().__init__(width, heads, **options)
        self.local_norm = nn.LayerNorm(width)
        self.local = LocalConcentration(width, (SIDE, SIDE), size=3)

    def forward(self, x, *, attn_mask=None, return_weights=False):
        x = x + self.attention(self.attention_norm(x), attn_mask=attn_mask)
        x = x + self.local(self.local_norm(x))
        return x + self.perceptron(self.perceptron_norm(x))


def near_pictures(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Class c: a pixel repeats its neighbor in direction c with chance 0.85; half are +1."""
    labels = torch.randint(4, (size,), generator=generator)
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    flips = torch.rand(size, SIDE, SIDE, generator=generator) < 0.15
    pixels = (torch.rand(size, SIDE, SIDE, generator=generator) < 0.5).double() * 2 - 1
    for row in range(SIDE):
        for column in range(SIDE):
            for label, (down, right) in enumerate(steps):
                if 0 <= column - right < SIDE and row >= down:
                    chosen = labels == label
                    sign = 1 - 2 * flips[:, row, column].double()
                    copied = sign * pixels[:, row - down, column - right]
                    pixels[chosen, row, column] = copied[chosen]
    return pixels[:, None].float(), labels


def everywhere_pictures(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Class c: a pixel is +1 with chance 0.35, 0.45, 0.55 or 0.65, wherever it lies."""
    labels = torch.randint(4, (size,), generator=generator)
    chance = 0.35 + 0.1 * labels[:, None, None]
    pixels = torch.rand(size, SIDE, SIDE, generator=generator) < chance
    return pixels[:, None].float() * 2 - 1, labels


PICTURES = {"near": near_pictures, "everywhere": everywhere_pictures}
