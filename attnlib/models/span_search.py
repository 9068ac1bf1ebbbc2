"""Which head needs to look how far: the influence of each weight, and the spans that cost least."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.attend import attend
from attnlib.checks import check_count
from attnlib.models.language import DecoderLM
from attnlib.read.head_spans import SpanRule
from attnlib.read.heads import weighted_sum
from attnlib.training import Objective, classification

LARGEST_CHOICE = 10**6
"""So many partial plans may be kept in the search."""


class Candidate(NamedTuple):
    """One rule for the span of a head: alpha + beta N."""

    alpha: float
    beta: float

    def span(self, length: int) -> int:
        """The span at this length, at least 1 and at most the length."""
        return SpanRule((self.alpha,), (self.beta,)).spans(length)[0]


def removal_influence(
    weights: Float[Tensor, "*heads N M"], slopes: Float[Tensor, "*heads N M"]
) -> Float[Tensor, "*heads N M"]:
    r"""How much the loss rises, to first order, if one key is hidden from one query.

    .. math:: E_{ij} = \frac{A_{ij}}{1 - A_{ij}} \Big(\sum_n G_{in} A_{in} - G_{ij}\Big),
              \qquad G = \partial L / \partial A

    Without key j the other weights are divided by 1 - A_ij; E is the slope of L along that change
    of the row. Where A_ij = 1 nothing is left and the row reads zero: E = -G_ij.
    Shapes: weights A and slopes G (*heads, N, M) -> the same. Raises ValueError where they differ.
    Source: Fu et al. (2024), the attention influence; as in the authors' profile.
    """
    if weights.shape != slopes.shape:
        raise ValueError(
            f"slopes must have the shape of weights {tuple(weights.shape)}, "
            f"got {tuple(slopes.shape)}"
        )
    mean = (slopes * weights).sum(-1, keepdim=True)
    alone = weights > 1 - 1e-6
    share = weights / (1 - weights).masked_fill(alone, 1.0)
    return torch.where(alone, -slopes * weights, share * (mean - slopes))


def profile(
    model: DecoderLM, batch: tuple[Tensor, ...], *, objective: Objective = classification
) -> Float[Tensor, "layers heads N N"]:
    """The influence of every weight of a trained model, summed over a batch's texts.

    `objective(model, batch)` gives (loss, ...), a mean over the answers, as in `train`. Summed over
    the texts of the batch this is the influence on the loss of hiding a pair in all of them. The
    model must read by softmax attention of queries, keys and values; it is left as it was.
    """
    layers = [block.attention for block in model.blocks]
    kept = [layer.operator for layer in layers]
    watches = [_Watch() for _ in layers]
    try:
        for layer, watch in zip(layers, watches, strict=True):
            layer.operator = watch
        loss = objective(model, batch)[0]
        weights = [watch.weights for watch in watches]
        slopes = torch.autograd.grad(loss, weights)
    finally:
        for layer, operator in zip(layers, kept, strict=True):
            layer.operator = operator
    pairs = zip(weights, slopes, strict=True)
    return torch.stack([removal_influence(a, g).sum(0) for a, g in pairs]).detach()


class _Watch:
    """Softmax attention that keeps its weights in the graph."""

    weights: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        _, self.weights = attend(query, key, value, return_weights=True, **options)
        return weighted_sum(self.weights, value)


def span_cost(
    influence: Float[Tensor, "*heads N M"], span: int, sinks: int = 0
) -> Float[Tensor, "*heads"]:
    """The summed influence of the pairs that a span hides: i - j >= span, and j no sink."""
    check_count("span", span, least=1)
    check_count("sinks", sinks)
    i, j = (torch.arange(size) for size in influence.shape[-2:])
    hidden = (i[:, None] - j >= span) & (j >= sinks)
    return (influence * hidden.to(influence)).sum((-2, -1))


def span_costs(
    influences: dict[int, Float[Tensor, "layers heads N N"]],
    candidates: Sequence[Candidate],
    sinks: int = 0,
) -> Float[Tensor, "all_heads candidates"]:
    """What each candidate costs each head, summed over the lengths at which it was profiled.

    Heads are counted through, layer after layer.
    """
    columns = [
        sum(
            span_cost(influence.flatten(0, 1), candidate.span(length), sinks)
            for length, influence in influences.items()
        )
        for candidate in candidates
    ]
    return torch.stack(columns, dim=-1)


def least_costly_spans(
    costs: Float[Tensor, "all_heads candidates"],
    candidates: Sequence[Candidate],
    budgets: dict[int, float],
) -> list[Candidate]:
    r"""The candidate for each head that makes the summed cost least within a budget.

    .. math:: \min \sum_h c_{h, r(h)} \quad \text{so that} \quad
              \frac{1}{H} \sum_h s_{r(h)}(N) \le \text{budget}(N) \text{ for each } N

    `budgets` gives the mean span allowed at each length. Exact: heads are added one by one, and of
    all plans with the same spans used the cheapest is kept. (The paper gives the same problem, with
    a loss for each length, to a solver of integer programs.)
    Raises ValueError where no plan fits, or costs and candidates do not.
    Source: Fu et al. (2024), the automatic optimization.
    """
    if costs.dim() != 2 or costs.shape[1] != len(candidates):
        raise ValueError(
            f"costs must have a column for each of the {len(candidates)} candidates, "
            f"got shape {tuple(costs.shape)}"
        )
    heads, lengths = len(costs), tuple(budgets)
    spans = [tuple(candidate.span(n) for n in lengths) for candidate in candidates]
    most = tuple(budgets[n] * heads for n in lengths)
    least = tuple(min(span[at] for span in spans) for at in range(len(lengths)))
    plans = {(0,) * len(lengths): (0.0, ())}
    for head, row in enumerate(costs.tolist()):
        to_come = heads - head - 1
        longer: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
        for used, (cost, chosen) in plans.items():
            for choice, (span, more) in enumerate(zip(spans, row, strict=True)):
                total = tuple(a + b for a, b in zip(used, span, strict=True))
                if any(
                    t + to_come * low > top + 1e-9
                    for t, low, top in zip(total, least, most, strict=True)
                ):
                    continue
                if total not in longer or cost + more < longer[total][0]:
                    longer[total] = cost + more, (*chosen, choice)
        if not longer:
            raise ValueError(
                f"budgets must leave room for the shortest candidate of each head, got {budgets}"
            )
        if len(longer) > LARGEST_CHOICE:
            raise ValueError(f"candidates must be fewer: more than {LARGEST_CHOICE} partial plans")
        plans = longer
    _, chosen = min(plans.values())
    return [candidates[choice] for choice in chosen]


def span_rules(chosen: Sequence[Candidate], layers: int, sinks: int = 0) -> list[SpanRule]:
    """One rule for each layer, of candidates that are counted through, layer after layer."""
    check_count("layers", layers, least=1)
    if not chosen or len(chosen) % layers:
        raise ValueError(f"chosen must have as many heads in each layer, got {len(chosen)} in all")
    heads = len(chosen) // layers
    parts = [chosen[start : start + heads] for start in range(0, len(chosen), heads)]
    return [
        SpanRule(tuple(c.alpha for c in part), tuple(c.beta for c in part), sinks) for part in parts
    ]


def with_operators(model: DecoderLM, operators: Sequence[Callable[..., Tensor]]) -> DecoderLM:
    """Let each layer of a trained model read by its own operator; it is changed and returned."""
    if len(operators) != len(model.blocks):
        raise ValueError(
            f"operators must be one for each of the {len(model.blocks)} layers, "
            f"got {len(operators)}"
        )
    for block, operator in zip(model.blocks, operators, strict=True):
        if isinstance(operator, nn.Module):
            raise TypeError("operators must be functions without parameters, got a module")
        block.attention.operator = operator
    return model
