"""A decoder language model in about a page."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.choices import check_choice
from attnlib.models.blocks import Block
from attnlib.models.positions import POSITIONS, TOKEN_SCALE, AddedPosition, position_in_score
from attnlib.weight.softmax_attention import softmax_attention


class DecoderLM(nn.Module):
    r"""Causal language model: embed, add positions, `layers` blocks, norm, logits.

    .. math:: p(t_{i+1} \mid t_1 \ldots t_i) = \mathrm{softmax}(W\,\mathrm{norm}(x_i))

    `operator` is any operator (or its name in the atlas) with a causal form; `position` one of
    "none", "sinusoidal", "learned", "relative", "alibi", "rope". The same `seed` gives the same
    parameters, and the global random state is left as it was.
    Shapes: tokens (batch, N) of integers below `vocabulary` -> logits (batch, N, vocabulary).
    Raises ValueError for tokens outside the vocabulary and for unknown names.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 64,
        heads: int = 2,
        layers: int = 2,
        operator: str | Callable[..., Tensor] | type[nn.Module] = softmax_attention,
        position: str = "rope",
        key_heads: int | None = None,
        expansion: int = 2,
        max_length: int = 512,
        seed: int = 0,
    ):
        super().__init__()
        check_choice("position", position, POSITIONS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            nn.init.normal_(self.embedding.weight, std=TOKEN_SCALE)
            self.position = AddedPosition(position, max_length, width)
            self.blocks = nn.ModuleList(
                Block(
                    width,
                    heads,
                    operator=operator,
                    position=position_in_score(position),
                    key_heads=key_heads,
                    is_causal=True,
                    expansion=expansion,
                )
                for _ in range(layers)
            )
            self.norm = nn.LayerNorm(width)
            self.to_logits = nn.Linear(width, vocabulary, bias=False)

    def forward(
        self, tokens: Int[Tensor, "batch N"], *, return_weights: bool = False
    ) -> Float[Tensor, "batch N vocabulary"] | tuple[Tensor, Tensor]:
        """Logits; with `return_weights` also the weights (layers, batch, heads, N, N)."""
        _check_tokens(tokens, self.embedding.num_embeddings)
        x = self.position(self.embedding(tokens))
        weights = []
        for block in self.blocks:
            x = block(x, return_weights=return_weights)
            if return_weights:
                x, layer_weights = x
                weights.append(layer_weights)
        logits = self.to_logits(self.norm(x))
        return (logits, torch.stack(weights)) if return_weights else logits


@torch.no_grad()
def sample(
    model: DecoderLM,
    tokens: Int[Tensor, "batch N"],
    count: int,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Int[Tensor, "batch N_plus_count"]:
    """Continue the tokens by `count` more, each drawn from the model's softmax."""
    for _ in range(count):
        chances = torch.softmax(model(tokens)[:, -1] / temperature, dim=-1)
        following = torch.multinomial(chances, 1, generator=generator)
        tokens = torch.cat((tokens, following), dim=1)
    return tokens


def _check_tokens(tokens: Tensor, vocabulary: int) -> None:
    if tokens.dim() != 2 or tokens.is_floating_point():
        raise ValueError(
            f"tokens must be integers of shape (batch, length), "
            f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(
            f"tokens must lie in 0 ... {vocabulary - 1}, "
            f"got {int(tokens.min())} ... {int(tokens.max())}"
        )
