"""Layers that keep one latent vector a token, with three ways to bring in positions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.memory.latent import LatentCache, latent_attention_step, up_keys_and_values
from attnlib.models.attention_layer import (
    AttentionLayer,
    Kept,
    check_causal,
    check_divides,
    check_pairs,
    projection,
    rotated,
)
from attnlib.read.heads import merge_heads, split_heads


class LatentAttention(AttentionLayer):
    r"""Multi-head latent attention with decoupled rotary positions.

    .. math:: c_j = \mathrm{norm}(W^{DKV} x_j), \quad k^h_j = [W^{UK}_h c_j;\ R_j W^{KR} x_j], \quad
              v^h_j = W^{UV}_h c_j, \quad q^h_i = [W^Q_h x_i;\ R_i W^{QR}_h x_i]

    R_j turns by the position j; its key is shared by all heads and made from x, not from the
    latent. `norm` is a root-mean-square norm. Training makes all keys and values; `step` keeps the
    latent and the rotated key alone and uses the absorbed form. The queries are of full rank: the
    paper compresses them too, which saves memory in training and nothing in decoding. Head widths
    are width / heads; `rotary_width` is half of that unless given, and 0 with position "none".

    Keeps latent_width + rotary_width numbers a token.
    Parameters, with R = latent_width and Dr = rotary_width: 2 width^2 + 3 width R + R
    + (heads + 1) Dr width. Raises ValueError for sizes that do not fit. Shapes as in
    `AttentionLayer`. Source: DeepSeek-AI (2024), eqs. 9 to 19. Derived in chapter 1.4.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        latent_width: int,
        rotary_width: int | None = None,
        position: str = "rope",
        is_causal: bool = False,
    ):
        super().__init__(position, is_causal)
        check_divides("heads", heads, "width", width)
        check_count("latent_width", latent_width, least=1)
        if rotary_width is None:
            rotary_width = width // heads // 2 if position == "rope" else 0
        check_rotary_width(rotary_width, position)

        self.heads, self.rotary_width = heads, rotary_width
        self.to_query = projection(width, width)
        self.to_latent = projection(width, latent_width)
        self.norm = nn.RMSNorm(latent_width, eps=1e-6)
        self.up_key = up_map(heads, width // heads, latent_width)
        self.up_value = up_map(heads, width // heads, latent_width)
        self.to_output = projection(width, width)
        if position == "rope":
            self.to_query_rotary = projection(width, heads * rotary_width)
            self.to_key_rotary = projection(width, rotary_width)
        self.cache_numbers = latent_width + rotary_width

    def queries(self, x: Tensor, start: int = 0) -> Tensor:
        """Of each head, the part that meets the latent, then the rotated part."""
        parts = [split_heads(self.to_query(x), self.heads)]
        if self.position == "rope":
            parts.append(rotated(split_heads(self.to_query_rotary(x), self.heads), start))
        return torch.cat(parts, dim=-1)

    def keep(self, context: Tensor, start: int = 0) -> LatentCache:
        """The normalized latent vectors and the rotated key that all heads share."""
        latent = self.norm(self.to_latent(context))
        if self.position == "none":
            return LatentCache(latent)
        return LatentCache(latent, rotated(self.to_key_rotary(context), start))

    def keys_and_values(self, latent: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor]:
        """The explicit form: all keys and values of all heads."""
        return up_keys_and_values(latent, self.up_key, self.up_value, rotary)

    def step(
        self, kept: LatentCache | None, x: Float[Tensor, "batch N width"]
    ) -> tuple[Float[Tensor, "batch N width"], LatentCache]:
        """Decode the next token (or tokens) in the absorbed form: (read, what is kept now)."""
        check_causal(self)
        start = 0 if kept is None else kept.length
        new = self.keep(x, start)
        query = self.queries(x, start)
        rotary_start = query.shape[-1] - self.rotary_width
        read, kept = latent_attention_step(
            kept,
            query[..., :rotary_start],
            new.latent,
            self.up_key,
            self.up_value,
            query_rotary=None if new.rotary is None else query[..., rotary_start:],
            key_rotary=new.rotary,
        )
        return self.to_output(merge_heads(read)), kept


class LatentAttentionBeforeRotation(AttentionLayer):
    r"""Latent attention whose keys are rotated after they are made: nothing can be absorbed.

    .. math:: c_j = \mathrm{norm}(W^{DKV} x_j), \quad k^h_j = R_j W^{UK}_h c_j, \quad
              v^h_j = W^{UV}_h c_j, \quad q^h_i = R_i W^Q_h x_i

    The rotation R_i^T R_j stands between W^Q and W^UK and changes with every pair, so that each
    step makes the keys of all tokens anew from the latents that are kept.

    Keeps latent_width numbers a token. Parameters: 2 width^2 + 3 width latent_width + latent_width.
    Raises ValueError for sizes that do not fit. Shapes as in `AttentionLayer`.
    Source: the form that DeepSeek-AI (2024), section 2.1.3, argues against.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        latent_width: int,
        position: str = "rope",
        is_causal: bool = False,
    ):
        super().__init__(position, is_causal)
        check_divides("heads", heads, "width", width)
        check_count("latent_width", latent_width, least=1)
        if position == "rope":
            check_pairs("width / heads", width // heads)
        self.heads = heads
        self.to_query = projection(width, width)
        self.to_latent = projection(width, latent_width)
        self.norm = nn.RMSNorm(latent_width, eps=1e-6)
        self.up_key = up_map(heads, width // heads, latent_width)
        self.up_value = up_map(heads, width // heads, latent_width)
        self.to_output = projection(width, width)
        self.cache_numbers = latent_width

    def queries(self, x: Tensor, start: int = 0) -> Tensor:
        """The rotated queries of all heads."""
        return self.placed(split_heads(self.to_query(x), self.heads), start)

    def keep(self, context: Tensor, start: int = 0) -> Kept:
        """The normalized latent vectors."""
        return (self.norm(self.to_latent(context)),)

    def keys_and_values(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """All keys, rotated, and all values."""
        key, value = up_keys_and_values(latent, self.up_key, self.up_value)
        return self.placed(key), value


class LatentAttentionAfterRotation(LatentAttentionBeforeRotation):
    r"""Latent attention on keys that are rotated first and compressed then.

    .. math:: c_j = \mathrm{norm}(W^{DKV}\, [\ldots;\ R_j W^K_h x_j;\ \ldots]), \quad
              k^h_j = W^{UK}_h c_j, \quad v^h_j = W^{UV}_h c_j, \quad q^h_i = R_i W^Q_h x_i

    The maps could be absorbed, but the latent mixes what was rotated by different angles, so that
    the score no longer depends on positions through i - j alone. The same numbers are kept as in
    `LatentAttentionBeforeRotation`, and W^K adds width^2 parameters.
    Source: "MLA-PreRoPE" of Jha and Reagen (2025), as their abstract describes it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        latent_width: int,
        position: str = "rope",
        is_causal: bool = False,
    ):
        super().__init__(
            width, heads, latent_width=latent_width, position=position, is_causal=is_causal
        )
        self.to_key = projection(width, width)

    def keep(self, context: Tensor, start: int = 0) -> Kept:
        """The normalized latent vectors of rotated keys."""
        key = self.placed(split_heads(self.to_key(context), self.heads), start)
        return (self.norm(self.to_latent(merge_heads(key))),)

    def keys_and_values(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, with no further rotation."""
        return up_keys_and_values(latent, self.up_key, self.up_value)


def up_map(heads: int, width: int, latent_width: int) -> nn.Parameter:
    """A map (heads, width, latent_width) from the latent vector to a vector of each head."""
    return nn.Parameter(torch.randn(heads, width, latent_width) * latent_width**-0.5)


def check_rotary_width(rotary_width: int, position: str) -> None:
    """Check that there is a rotary part exactly where there are positions."""
    if position == "rope":
        check_pairs("rotary_width", rotary_width)
    elif rotary_width != 0:
        raise ValueError(f"rotary_width must be 0 with position 'none', got {rotary_width}")
