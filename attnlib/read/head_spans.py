"""Heads that look back over spans of their own, which may grow with the length of the text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.read.flash_attention import with_adjacent_numbers
from attnlib.read.heads import repeat_key_heads
from attnlib.read.near_keys import read_near_and_listed
from attnlib.support import Support


def span_support(spans: Sequence[int], sinks: int = 0) -> Support:
    """Head h sees the keys less than spans[h] places away, and the first `sinks` keys.

    Together with `is_causal` these are the last spans[h] keys and the sinks.
    """
    check_count("sinks", sinks)
    table = torch.tensor(_checked_spans(spans, len(spans)))
    return Support(
        lambda b, h, q_idx, kv_idx: (
            ((q_idx - kv_idx).abs() < table.to(q_idx.device)[h]) | (kv_idx < sinks)
        ),
        f"span_support({tuple(spans)}, sinks={sinks})",
    )


def dense_head_spans(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    spans: Sequence[int] | None = None,
    *,
    sinks: int = 0,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """`attend` with `span_support`: all scores are computed and most of them thrown away."""
    return attend(
        query,
        key,
        value,
        support=None if spans is None else span_support(spans, sinks),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def trial_spans(query: Tensor, key: Tensor, value: Tensor) -> dict[str, list[int]]:
    """Spans for a trial call: three keys for every head."""
    return {"spans": [3] * _heads(query)}


@mechanism(
    key="moa-mixed-spans",
    paper="moa-mixed-spans",
    chapter="6-sparse/content-routing",
    section="spans-for-heads",
    step="support",
    idea="each head looks back over a span of its own, found once from what its weights do",
    equation=r"S_i^h = \{j : i - s_h < j \le i\} \cup \{j < \text{sinks}\},\;"
    r" s_h = \alpha_h + \beta_h N",
    cost="time N (sum of the spans)(D + E), memory (N + M)(D + E)",
    oracle=dense_head_spans,
    promises=Promises(query_equivariant=False, key_invariant=False, arguments=trial_spans),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="local", representations="multi-head"
    ),
)
def head_spans_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    spans: Sequence[int] | None = None,
    *,
    sinks: int = 0,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention in which head h sees the keys within its span, and the first few.

    .. math:: S_i^h = \{j : |i - j| < s_h\} \cup \{j < \text{sinks}\}

    and of these, with `is_causal`, the keys j <= i: the last s_h ones and the sinks. Heads of one
    span are read together, `chunk` queries at a time. Without `spans` every head sees every key.

    Shapes as in `attend`; `spans` one integer of at least 1 for each query head. Cost: time
    N (s_h + chunk + sinks)(D + E) a head (twice s_h if not causal), memory (N + M)(D + E) +
    chunk (chunk + 2 s_h + sinks), with gradients too: the backward pass computes each run again.
    `backend` as in `attnlib.backend`; the kernel takes no `attn_mask`.
    Errors as in `attend`; ValueError for a span below 1 or another number of spans than heads.
    Source: Fu et al. (2024), spans that differ by head. Derived in chapter 6.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("sinks", sinks)
    check_count("chunk", chunk, least=1)
    longest = max(query_offset + query.shape[-2], key.shape[-2], 1)
    heads = _heads(query)
    spans = [longest] * heads if spans is None else _checked_spans(spans, heads)
    if attn_mask is not None:
        shape = torch.Size((*query.shape[:-1], key.shape[-2]))
        check_mask(attn_mask, shape)
        attn_mask = attn_mask.expand(shape)

    if runs_kernel(backend, query.device, lambda: why_not_kernel(query, value, attn_mask)):
        return _read_by_kernel(query, key, value, spans, sinks, is_causal, query_offset, scale)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    options = {
        "is_causal": is_causal,
        "query_offset": query_offset,
        "scale": scale,
        "chunk": chunk,
    }
    first = torch.arange(min(sinks, key.shape[-2]), device=key.device)
    if query.dim() == 2:
        return read_near_and_listed(
            query, key, value, spans[0], first, attn_mask=attn_mask, **options
        )
    if not spans:  # no heads: nothing is read
        return value.new_zeros(*query.shape[:-1], value.shape[-1])
    reads, order = [], []
    for span in sorted(set(spans)):
        same = [head for head, own in enumerate(spans) if own == span]
        mask = None if attn_mask is None else attn_mask[..., same, :, :]
        own = (x[..., same, :, :] for x in (query, key, value))
        reads.append(
            read_near_and_listed(*own, min(span, longest), first, attn_mask=mask, **options)
        )
        order += same
    back = torch.tensor(order).argsort().tolist()
    return torch.cat(reads, dim=-3)[..., back, :, :] if len(reads) > 1 else reads[0]


@dataclass(frozen=True)
class SpanRule:
    r"""Spans that grow with the text: s_h(N) = alpha_h + beta_h N, rounded down, at least 1.

    An operator for models (`MultiHeadAttention(operator=rule)`), in which N is the number of keys.
    With a beta that is not zero what a token reads depends on how long the whole text is: the
    rule is set once the prompt is known, and not moved while tokens are appended.
    Raises ValueError for other numbers of alphas than of betas and for negative ones.
    Source: Fu et al. (2024), the elastic rules.
    """

    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    sinks: int = 0

    def __post_init__(self):
        if len(self.alpha) != len(self.beta) or not self.alpha:
            raise ValueError(
                "alpha and beta must have one number for each head, "
                f"got {len(self.alpha)} and {len(self.beta)}"
            )
        for name, numbers in (("alpha", self.alpha), ("beta", self.beta)):
            if any(not number >= 0 for number in numbers):
                raise ValueError(f"{name} must not be negative, got {numbers}")
        check_count("sinks", self.sinks)

    def spans(self, length: int) -> list[int]:
        """The span of each head for a text of this length."""
        check_count("length", length)
        pairs = zip(self.alpha, self.beta, strict=True)
        return [max(1, min(length, int(alpha + beta * length))) for alpha, beta in pairs]

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False, **options
    ) -> Tensor:
        """`head_spans_attention` with the spans of this length."""
        spans = self.spans(key.shape[-2])
        return head_spans_attention(
            query, key, value, spans, sinks=self.sinks, is_causal=is_causal, **options
        )


def span_pairs(spans: Sequence[int], length: int, sinks: int = 0) -> int:
    """How many pairs of a query and a key the heads read of a causal text of this length."""
    places = torch.arange(length)
    near = [(places + 1).clamp(max=span) for span in _checked_spans(spans, len(spans))]
    far = [torch.minimum(places + 1 - keys, torch.tensor(sinks)) for keys in near]
    return int(sum(keys.sum() for keys in (*near, *far)))


def why_not_kernel(query: Tensor, value: Tensor, attn_mask: Tensor | None) -> str | None:
    """What of this call the kernel cannot do, or None."""
    if attn_mask is not None:
        return "the kernel of head spans takes no attn_mask"
    return width_obstacle(query, value)


def _read_by_kernel(query, key, value, spans, sinks, is_causal, query_offset, scale) -> Tensor:
    from attnlib.kernels.masked_block_attention import masked_block_attention
    from attnlib.kernels.tiled_support import tiled_support
    from attnlib.support import causal

    own = span_support(spans, sinks)
    tiles = tiled_support(
        own & causal if is_causal else own,
        queries=query.shape[-2],
        keys=key.shape[-2],
        heads=len(spans),
        query_offset=query_offset,
        device=query.device,
    )
    adjacent = (with_adjacent_numbers(x) for x in (query, key, value))
    return masked_block_attention(*adjacent, tiles, scale=scale)


def _heads(query: Tensor) -> int:
    return query.shape[-3] if query.dim() > 2 else 1


def _checked_spans(spans: Sequence[int], heads: int) -> list[int]:
    if isinstance(spans, Tensor):
        spans = spans.tolist()
    if isinstance(spans, int | float | str):
        raise TypeError(f"spans must be a list with an int for each head, got {spans!r}")
    spans = list(spans)
    for span in spans:
        check_count("spans", span, least=1)
    if len(spans) != heads or not spans:
        raise ValueError(f"spans must have one int for each of the {heads} heads, got {spans}")
    return spans
