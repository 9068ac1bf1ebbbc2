"""Latent attention: one short vector a token is kept; keys and values are linear maps of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_dtype, check_tensor
from attnlib.read.shared_heads import multi_query_attention


class LatentCache(NamedTuple):
    """What is kept: a latent vector a token and, with a rotary part, its shared rotated key."""

    latent: Float[Tensor, "*batch M R"]
    rotary: Float[Tensor, "*batch M Dr"] | None = None

    @property
    def length(self) -> int:
        """How many tokens are kept."""
        return self.latent.shape[-2]

    def append(self, latent: Tensor, rotary: Tensor | None = None) -> LatentCache:
        """A new cache with the rows of `latent` and `rotary` added; this one stays as it was."""
        if (self.rotary is None) != (rotary is None):
            raise ValueError("key_rotary must be given for all tokens or for none")
        latent = _appended("latent", self.latent, latent)
        return LatentCache(
            latent, None if rotary is None else _appended("key_rotary", self.rotary, rotary)
        )


def explicit_latent_attention(
    query: Float[Tensor, "*batch H N D"],
    latent: Float[Tensor, "*batch M R"],
    up_key: Float[Tensor, "H D R"],
    up_value: Float[Tensor, "H E R"],
    *,
    query_rotary: Float[Tensor, "*batch H N Dr"] | None = None,
    key_rotary: Float[Tensor, "*batch M Dr"] | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*batch H N E"]:
    r"""Latent attention with all keys and values made: the form that is trained.

    .. math:: k^h_j = [W^{UK}_h c_j;\, k^R_j], \qquad v^h_j = W^{UV}_h c_j, \qquad
              o^h = \mathrm{softmax}([Q^h; Q^{R,h}]\, {K^h}^\top / \sqrt{D + D_R})\, V^h

    Arguments as in `latent_attention`, which computes the same without keys and values.
    Cost: time H M R (D + E) to make them, then H N M (D + D_R + E).
    Source: DeepSeek-AI (2024), eqs. 10, 11 and 16 to 18. Derived in chapter 1.4.
    """
    check_latent(query, latent, up_key, up_value, query_rotary, key_rotary)
    key, value = up_keys_and_values(latent, up_key, up_value, key_rotary)
    if query_rotary is not None:
        query = torch.cat((query, query_rotary), dim=-1)
    return attend(
        query,
        key,
        value,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
    )


def up_keys_and_values(
    latent: Float[Tensor, "*batch M R"],
    up_key: Float[Tensor, "H D R"],
    up_value: Float[Tensor, "H E R"],
    key_rotary: Float[Tensor, "*batch M Dr"] | None = None,
) -> tuple[Float[Tensor, "*batch H M K"], Float[Tensor, "*batch H M E"]]:
    """Keys and values of all heads; the rotary key that they share is laid beside each key."""
    key = einsum(up_key, latent, "h d r, ... m r -> ... h m d")
    value = einsum(up_value, latent, "h e r, ... m r -> ... h m e")
    if key_rotary is not None:
        shared = key_rotary[..., None, :, :].expand(*key.shape[:-1], key_rotary.shape[-1])
        key = torch.cat((key, shared), dim=-1)
    return key, value


def latent_attention_step(
    cache: LatentCache | None,
    query: Float[Tensor, "*batch H N D"],
    latent: Float[Tensor, "*batch N R"],
    up_key: Float[Tensor, "H D R"],
    up_value: Float[Tensor, "H E R"],
    *,
    query_rotary: Float[Tensor, "*batch H N Dr"] | None = None,
    key_rotary: Float[Tensor, "*batch N Dr"] | None = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*batch H N E"], LatentCache]:
    """Causal latent attention for the next token (or tokens): (read, new cache).

    Token by token it gives the rows of `latent_attention(..., is_causal=True)`. A cache of M tokens
    holds M (R + D_R) numbers, however many heads there are. Pass None to begin.
    """
    if cache is not None and not isinstance(cache, LatentCache):
        raise TypeError(f"cache must be a LatentCache or None, got {type(cache).__name__}")
    check_latent(query, latent, up_key, up_value, query_rotary, key_rotary)
    new = LatentCache(latent, key_rotary)
    cache = new if cache is None else cache.append(*new)
    read = latent_attention(
        query,
        cache.latent,
        up_key,
        up_value,
        query_rotary=query_rotary,
        key_rotary=cache.rotary,
        is_causal=True,
        query_offset=cache.length - query.shape[-2],
        scale=scale,
    )
    return read, cache


@mechanism(
    key="latent-attention",
    paper="deepseek-2024",
    chapter="1-foundations/exact-and-cached",
    section="one-latent-vector",
    step="memory",
    idea="one latent vector a token is kept, and the maps that make keys and values of it are"
    " absorbed into query and output",
    equation=r"o^h = W^{UV}_h\,(A^h C),\; A^h = \mathrm{softmax}"
    r"((Q^h W^{UK}_h\, C^\top + Q^{R,h} {K^R}^\top) / \sqrt{D + D_R})",
    cost="time H N (D + E) R + H N M (2 R + D_R), memory H N M; keeps R + D_R numbers a token",
    oracle=explicit_latent_attention,
    recurrent=latent_attention_step,
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def latent_attention(
    query: Float[Tensor, "*batch H N D"],
    latent: Float[Tensor, "*batch M R"],
    up_key: Float[Tensor, "H D R"],
    up_value: Float[Tensor, "H E R"],
    *,
    query_rotary: Float[Tensor, "*batch H N Dr"] | None = None,
    key_rotary: Float[Tensor, "*batch M Dr"] | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*batch H N E"]:
    r"""Latent attention with absorbed maps: multi-query attention on the latent vectors.

    The maps to keys and values leave the sum over tokens:

    .. math:: q^h_i \cdot (W^{UK}_h c_j) = ({W^{UK}_h}^\top q^h_i) \cdot c_j, \qquad
              \sum_j a^h_{ij}\, W^{UV}_h c_j = W^{UV}_h \sum_j a^h_{ij}\, c_j

    so no key and no value is ever made; it equals `explicit_latent_attention`. A rotation between
    the two factors would forbid the first step. Positions therefore come through the decoupled
    part, if it is given: `query_rotary` and `key_rotary`, already rotated, add q^R . k^R to the
    score, and all heads share k^R.

    Shapes: query (..., H, N, D), latent (..., M, R), up_key (H, D, R), up_value (H, E, R),
    query_rotary (..., H, N, D_R), key_rotary (..., M, D_R) -> (..., H, N, E).
    `scale` is (D + D_R)^(-1/2) unless given.
    Cost: time H N (D + E) R for the maps and H N M (2 R + D_R) for the read; memory H N M.
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: DeepSeek-AI (2024), section 2.1 and appendix B. Derived in chapter 1.4.
    """
    check_latent(query, latent, up_key, up_value, query_rotary, key_rotary)
    if scale is None:
        rotary_width = 0 if query_rotary is None else query_rotary.shape[-1]
        scale = (query.shape[-1] + rotary_width) ** -0.5
    query, key = einsum(up_key, query, "h d r, ... h n d -> ... h n r"), latent
    if query_rotary is not None:
        query, key = torch.cat((query, query_rotary), -1), torch.cat((latent, key_rotary), -1)
    read = multi_query_attention(
        query,
        key,
        latent,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
    )
    return einsum(up_value, read, "h e r, ... h n r -> ... h n e")


def check_latent(
    query: Tensor,
    latent: Tensor,
    up_key: Tensor,
    up_value: Tensor,
    query_rotary: Tensor | None = None,
    key_rotary: Tensor | None = None,
) -> None:
    """Check that the arguments of latent attention fit together; name the one that does not."""
    given = {"query": query, "latent": latent, "up_key": up_key, "up_value": up_value}
    if (query_rotary is None) != (key_rotary is None):
        missing = "query_rotary" if query_rotary is None else "key_rotary"
        raise ValueError(f"{missing} must be given where the other rotary part is, got None")
    if query_rotary is not None:
        given |= {"query_rotary": query_rotary, "key_rotary": key_rotary}
    for name, tensor in given.items():
        check_tensor(name, tensor)
        check_dtype(name, tensor, query)
    if query.dim() < 3:
        raise ValueError(f"query must have shape (..., heads, N, D), got {tuple(query.shape)}")
    *batch, heads, queries, width = query.shape
    if latent.dim() != query.dim() - 1 or list(latent.shape[:-2]) != batch:
        raise ValueError(
            f"latent must have shape {(*batch, 'M', 'R')}, without heads, got {tuple(latent.shape)}"
        )
    keys, rank = latent.shape[-2:]
    wanted = {"up_key": (heads, width, rank), "up_value": (heads, "E", rank)}
    if query_rotary is not None:
        turned = query_rotary.shape[-1:]
        wanted["query_rotary"] = (*batch, heads, queries, *turned)
        wanted["key_rotary"] = (*batch, keys, *turned)
    for name, shape in wanted.items():
        came = tuple(given[name].shape)
        same = len(came) == len(shape) and all(
            size == "E" or size == got for size, got in zip(shape, came, strict=True)
        )
        if not same:
            raise ValueError(f"{name} must have shape {shape}, got {came}")


def _appended(name: str, old: Tensor, new: Tensor) -> Tensor:
    if old.shape[:-2] != new.shape[:-2] or old.shape[-1] != new.shape[-1]:
        raise ValueError(
            f"{name} must have shape {(*old.shape[:-2], 'n', old.shape[-1])} to be appended, "
            f"got {tuple(new.shape)}"
        )
    if (new.dtype, new.device) != (old.dtype, old.device):
        raise TypeError(
            f"{name} must be {old.dtype} on {old.device} to be appended, "
            f"got {new.dtype} on {new.device}"
        )
    return torch.cat((old, new), dim=-2)
