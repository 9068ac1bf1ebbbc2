"""The decoder language model with the attention of some or all layers ablated."""

from collections.abc import Callable, Collection
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.models.attention_ablations import (
    GatedPerceptron,
    GuidedAttention,
    LearntMap,
    RandomMap,
    approximate_attention,
    key_alone_attention,
    own_value,
)
from attnlib.models.blocks import Block
from attnlib.models.language import DecoderLM
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.positions import TOKEN_SCALE
from attnlib.weight.uniform_attention import uniform_attention

MakeLayer = Callable[[int], nn.Module]
"""The number of a layer, from 0 on -> the attention layer that it gets."""


def ablate(
    model: DecoderLM, make_layer: MakeLayer, *, standard: Collection[int] = (), seed: int = 0
) -> DecoderLM:
    """Put `make_layer(i)` into block i of a model, but leave the blocks in `standard` as they are.

    With `standard=()` the ablation is uniform, with every second block it is the paper's hybrid.
    The model is changed and returned; the global random state is left as it was.
    Raises ValueError for a block that the model does not have.
    """
    blocks = range(len(model.blocks))
    if not set(standard) <= set(blocks):
        raise ValueError(
            f"standard must name blocks in 0 ... {len(blocks) - 1}, got {sorted(standard)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i in blocks:
            if i not in standard:
                model.blocks[i].attention = make_layer(i)
    return model


class GuidedLM(DecoderLM):
    """A language model in which a guide walks along with the tokens, for `GuidedAttention`.

    A subclass says what the guide is at first and after each block. Layers in `standard` keep the
    attention of `DecoderLM`; all others are guided. Arguments and shapes as in `DecoderLM`.
    Source: Xue et al. (2025), sections 3.4 and 3.5.
    """

    def __init__(self, vocabulary: int, *, standard: Collection[int] = (), **options):
        super().__init__(vocabulary, **options)
        width, usual = self.embedding.embedding_dim, self.blocks[0].attention
        make = partial(GuidedAttention, width, usual.heads, position=usual.position, is_causal=True)
        ablate(self, lambda i: make(), standard=standard, seed=options.get("seed", 0))

    def first_guide(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "#batch N width"]:
        """The guide of the first block, for tokens that have been embedded."""
        raise NotImplementedError

    def next_guide(self, block: Block, guide: Tensor) -> Tensor:
        """The guide of the block after `block`."""
        raise NotImplementedError

    def forward(self, tokens: Int[Tensor, "batch N"]) -> Float[Tensor, "batch N vocabulary"]:
        """Logits."""
        x = self.position(self.embedding(tokens))
        guide = self.first_guide(x)
        for block in self.blocks:
            x, guide = guided(block, x, guide), self.next_guide(block, guide)
        return self.to_logits(self.norm(x))


class EmbeddingGuidedLM(GuidedLM):
    """Queries and keys of every layer come from the embedded tokens: content, but not current.

    Source: Xue et al. (2025), eq. 13, StaticEmbQK.
    """

    def first_guide(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """The embedded tokens."""
        return x

    def next_guide(self, block: Block, guide: Tensor) -> Tensor:
        """The embedded tokens still."""
        return guide


class RandomGuidedLM(GuidedLM):
    """Queries and keys come from random embeddings that pass through the same blocks.

    The weights are learnt, through the blocks, and are the same for all texts.
    Source: Xue et al. (2025), eqs. 9 and 10, RndEmbQK.
    """

    def __init__(self, vocabulary: int, *, max_length: int = 512, **options):
        super().__init__(vocabulary, max_length=max_length, **options)
        generator = torch.Generator().manual_seed(options.get("seed", 0))
        width = self.embedding.embedding_dim
        noise = TOKEN_SCALE * torch.randn(1, max_length, width, generator=generator)
        self.register_buffer("noise", noise)

    def first_guide(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "1 N width"]:
        """The first of the random embeddings, as many as there are tokens."""
        if x.shape[1] > self.noise.shape[1]:
            raise ValueError(
                f"tokens must be at most max_length={self.noise.shape[1]} long, got {x.shape[1]}"
            )
        return self.noise[:, : x.shape[1]]

    def next_guide(self, block: Block, guide: Tensor) -> Tensor:
        """The guide passes the block as if it were the text."""
        return guided(block, guide, guide)


def guided(block: Block, x: Tensor, guide: Tensor) -> Float[Tensor, "batch N width"]:
    """A block on tokens x; its attention follows the guide where it is a `GuidedAttention`."""
    if not isinstance(block.attention, GuidedAttention):
        return block(x)
    x = x + block.attention(block.attention_norm(x), block.attention_norm(guide))
    return x + block.perceptron(block.perceptron_norm(x))


def _operator(make_operator: Callable[..., Callable]) -> Callable[..., DecoderLM]:
    """A maker of models whose ablated layers are multi-head attention with another operator."""

    def make(vocabulary: int, *, standard: Collection[int] = (), **options) -> DecoderLM:
        model = DecoderLM(vocabulary, **options)
        width, usual = model.embedding.embedding_dim, model.blocks[0].attention
        length, seed = options.get("max_length", 512), options.get("seed", 0)

        def layer(i: int) -> MultiHeadAttention:
            operator = make_operator(heads=usual.heads, max_length=length, seed=100 * seed + i)
            return MultiHeadAttention(
                width, usual.heads, operator=operator, position=usual.position, is_causal=True
            )

        return ablate(model, layer, standard=standard, seed=seed)

    return make


def _learnt_map(heads: int, max_length: int, seed: int) -> LearntMap:
    return LearntMap(heads=heads, max_length=max_length)


def _unmixed(vocabulary: int, *, standard: Collection[int] = (), **options) -> DecoderLM:
    model = DecoderLM(vocabulary, **options)
    width, seed = model.embedding.embedding_dim, options.get("seed", 0)
    return ablate(model, lambda i: GatedPerceptron(width), standard=standard, seed=seed)


ABLATIONS: dict[str, Callable[..., DecoderLM]] = {
    "gated perceptron": _unmixed,
    "own value": _operator(lambda **_: own_value),
    "uniform": _operator(lambda **_: uniform_attention),
    "random map": _operator(RandomMap),
    "learnt map": _operator(
        lambda heads, max_length, seed: LearntMap(heads=heads, max_length=max_length)
    ),
    "random guide": RandomGuidedLM,
    "embedding guide": EmbeddingGuidedLM,
    "key alone": _operator(lambda **_: key_alone_attention),
    "Taylor": _operator(lambda **_: approximate_attention),
}
"""Ablations by name, from no mixing at all to content without the exponential.

Each is called like `DecoderLM`, and takes `standard`, the layers that keep their attention.
"""
