"""Layer states woven together again: a late layer reads what earlier layers made of all tokens.

A reconstruction: the abstract of the source gives no equation. What is here is ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_count
from attnlib.models.attention_layer import projection
from attnlib.models.language import DecoderLM
from attnlib.weight.softmax_attention import softmax_attention


@mechanism(
    key="contextual-memory-reweaving",
    paper="contextual-memory-reweaving",
    chapter="7-memory/test-time-memory-in-practice",
    section="reweaving-layers",
    step="memory",
    idea="a gated read of the states that earlier layers left for all past tokens",
    equation=(
        r"R = \sum_l \mathrm{softmax}(w)_l P_l h^{(l)},"
        r" \; x' = x + g\, \mathrm{attention}(x, R, R)"
    ),
    cost="time N^2 width and N width^2 a layer; it keeps width numbers of every token",
    promises=None,
    taxonomy=Taxonomy("self", "multi", "soft", "single"),
)
class LayerReweaving(nn.Module):
    r"""The read of a memory woven from the states of several layers, behind a gate.

    .. math:: R = \sum_l \mathrm{softmax}(w)_l\, P_l\, h^{(l)}, \qquad
              x' = x + g\, W^O \mathrm{attention}(W^Q x,\ W^K R,\ W^V R)

    g is one number that starts at 0, where the tokens pass unchanged to the last bit. Attention is
    causal and sees every token, however far back. Shapes: x (batch, N, width), states a list of
    `layers` tensors like x -> (batch, N, width). Raises ValueError for another number of states.
    Source: a reconstruction after the abstract of Dillon et al. (2025). Companion of chapter 7.2.
    """

    def __init__(self, width: int, layers: int):
        super().__init__()
        check_count("layers", layers, least=1)
        self.log_share = nn.Parameter(torch.zeros(layers))
        self.unfold = nn.ModuleList(projection(width, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_query, self.to_key, self.to_value, self.to_output = (
            projection(width, width) for _ in range(4)
        )
        self.gate = nn.Parameter(torch.zeros(()))

    def woven(self, states: list[Float[Tensor, "batch N width"]]) -> Float[Tensor, "batch N width"]:
        """R: the states of the layers, each turned by its own matrix, mixed by learnt shares."""
        if len(states) != len(self.unfold):
            raise ValueError(f"states must come from {len(self.unfold)} layers, got {len(states)}")
        shares = self.log_share.softmax(0)
        parts = zip(shares, self.unfold, states, strict=True)
        return sum(share * unfold(state) for share, unfold, state in parts)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        states: list[Float[Tensor, "batch N width"]],
    ) -> Float[Tensor, "batch N width"]:
        """The tokens with what they read."""
        memory = self.woven(states)
        heads = (self.to_query(self.norm(x)), self.to_key(memory), self.to_value(memory))
        read = softmax_attention(*(part[:, None] for part in heads), is_causal=True)
        return x + self.gate * self.to_output(read[:, 0])


class ReweavingLM(nn.Module):
    """A language model whose last block reads the woven states of all blocks before it.

    `model` is used as it is; with the gate at 0 the logits are its own, bit for bit. Shapes: tokens
    (batch, N) -> logits (batch, N, vocabulary). Raises ValueError for a model of a single block,
    which has no earlier layer.
    """

    def __init__(self, model: DecoderLM, *, seed: int = 0):
        super().__init__()
        if len(model.blocks) < 2:
            raise ValueError(f"model must have at least 2 blocks, got {len(model.blocks)}")
        self.model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = model.embedding.embedding_dim
            self.reweaving = LayerReweaving(width, len(model.blocks) - 1)

    def forward(self, tokens: Int[Tensor, "batch N"]) -> Float[Tensor, "batch N vocabulary"]:
        """Logits of the model with the read in front of its last block."""
        x = self.model.position(self.model.embedding(tokens))
        states = []
        for block in self.model.blocks[:-1]:
            x = block(x)
            states.append(x)
        x = self.model.blocks[-1](self.reweaving(x, states))
        return self.model.to_logits(self.model.norm(x))
