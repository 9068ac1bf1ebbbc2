"""A Transformer block with the normalization before each of its two parts."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.models.multi_head import MultiHeadAttention
from attnlib.weight.softmax_attention import softmax_attention


class Block(nn.Module):
    r"""x + attention(norm(x)), then x + perceptron(norm(x)): tokens look, then think.

    Arguments of the attention as in `MultiHeadAttention`; `expansion` is the hidden width of the
    perceptron in units of `width`. Shapes: (batch, N, width) -> (batch, N, width).
    Source: Vaswani et al. (2017), section 3.1; the norm before, Xiong et al. (2020).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        operator: str | Callable[..., Tensor] | type[nn.Module] = softmax_attention,
        position: str = "none",
        key_heads: int | None = None,
        is_causal: bool = False,
        expansion: int = 2,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(
            width,
            heads,
            operator=operator,
            position=position,
            key_heads=key_heads,
            is_causal=is_causal,
        )
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
        )

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The next tokens; with `return_weights` also the weights (batch, heads, N, N)."""
        read, weights = self.attention_norm(x), None
        read = self.attention(read, attn_mask=attn_mask, return_weights=return_weights)
        if return_weights:
            read, weights = read
        x = x + read
        x = x + self.perceptron(self.perceptron_norm(x))
        return (x, weights) if return_weights else x
