"""Wrong supports: masks shifted, misaligned, forgotten."""

from torch import Tensor

from attnlib.attend import attend
from attnlib.conformance.mutants.register import mutant
from attnlib.support import Support


@mutant()
def mask_shifted_late(query, key, value, *, is_causal=False, support=None, **options):
    """The causal mask is shifted by one: every query sees the next token."""
    late = Support(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + 1, "late")
    return attend(query, key, value, support=_both(support, late, is_causal), **options)


@mutant()
def mask_shifted_early(query, key, value, *, is_causal=False, support=None, **options):
    """The causal mask is shifted by one: no query sees its own token."""
    past = Support(lambda b, h, q_idx, kv_idx: kv_idx < q_idx, "past")
    return attend(query, key, value, support=_both(support, past, is_causal), **options)


@mutant("pytorch/pytorch, issue 103082; ml-explore/mlx, issue 2835")
def mask_bottom_right(query, key, value, *, is_causal=False, support=None, **options):
    """The causal mask is aligned at its bottom right corner instead of the top left."""
    corner = Support(
        lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + key.shape[-2] - query.shape[-2], "corner"
    )
    return attend(query, key, value, support=_both(support, corner, is_causal), **options)


@mutant()
def offset_ignored(query, key, value, *, is_causal=False, query_offset=0, support=None, **options):
    """The causal mask forgets the offset: a decoding step sees the first keys only."""
    early = Support(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx - query_offset, "early")
    support = _both(support, early, is_causal)
    return attend(query, key, value, support=support, query_offset=query_offset, **options)


@mutant("line/lighthouse, pull request 77, is of this kind")
def mask_of_the_first_sequence(query, key, value, *, attn_mask=None, **options):
    """The padding mask of sequence 0 is used for the whole batch."""
    if isinstance(attn_mask, Tensor) and attn_mask.dim() > 3:
        attn_mask = attn_mask[:1]
    return attend(query, key, value, attn_mask=attn_mask, **options)


def _both(support, other, is_causal):
    if not is_causal:
        return support
    return other if support is None else other & support
