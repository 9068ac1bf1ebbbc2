"""One more key in front of all others, which every query sees: a place of the mechanism's own."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.score.changes import ScoreMod, changed
from attnlib.support import Predicate, Support, seen_keys


def in_front(
    extra: Float[Tensor, "*#key_heads 1 D"], rows: Float[Tensor, "*key_heads M D"]
) -> Float[Tensor, "*key_heads M+1 D"]:
    """The keys (or values) with one more row before the first."""
    return torch.cat((extra.to(rows).expand(*rows.shape[:-2], 1, rows.shape[-1]), rows), dim=-2)


def mask_behind(attn_mask: Bool[Tensor, "..."] | None, keys: int) -> Bool[Tensor, "..."] | None:
    """A mask of the keys as one of the keys and the extra key, which it never hides."""
    if attn_mask is None:
        return None
    attn_mask = attn_mask.expand(*attn_mask.shape[:-1], keys)
    return torch.cat((attn_mask.new_ones(*attn_mask.shape[:-1], 1), attn_mask), dim=-1)


def support_behind(support: Predicate | None) -> Support | None:
    """A support of the keys as one of the keys and the extra key, number 0.

    Key j has become key j + 1, and the query at position i stands at i + 1, so that distances and
    the causal rule are as before.
    """
    if support is None:
        return None

    def sees(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx == 0) | seen_keys(support, (b, h, q_idx - 1, (kv_idx - 1).clamp(min=0)))

    return Support(sees, f"extra_key | {getattr(support, 'name', 'support')}")


def scores_behind(
    score_mod: ScoreMod | None, first: Float[Tensor, "..."] | float | None = None
) -> ScoreMod | None:
    """A score change of the keys as one of the keys and the extra key.

    The extra key's own score becomes `first`, a number or one for each head; None leaves it.
    """
    if score_mod is None and first is None:
        return None

    def change(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        own = score
        if isinstance(first, Tensor):
            own = (first.expand(h.numel())[h] if first.dim() else first).to(score).expand_as(score)
        elif first is not None:
            own = torch.full_like(score, first)
        if score_mod is not None:
            score = changed(score_mod, score, (b, h, q_idx - 1, (kv_idx - 1).clamp(min=0)))
        return torch.where(kv_idx == 0, own, score)

    return change
