"""The programs of chapter 5.2: gates of two kinds of heads, heads that skip, a balanced load."""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


# ---- 5.2.3 gates of shared and routed heads


@checker("5.2.3")
def gates_of_two_kinds(answer) -> str:
    """[alpha_1 softmax(shared); alpha_2 softmax(routed) kept at the largest]."""
    for shared_heads, routed_heads, active in ((2, 6, 2), (3, 4, 4), (1, 5, 1)):
        scores = random(523, (2, 5, shared_heads), (2, 5, routed_heads), (2, 5, 2))
        shape = (2, 5, shared_heads + routed_heads)
        gates = tensor_of(call(answer, *scores, active), shape, "the gates")
        _name_gates(gates, scores, active)
    return "Right for several numbers of heads; skipped heads have gates of exactly zero."


def _name_gates(gates: Tensor, scores: list[Tensor], active: int) -> None:
    shared, routed, way = scores
    heads = shared.shape[-1]
    right = two_way(*scores, active)
    always, sometimes = gates[..., :heads], gates[..., heads:]
    if active < routed.shape[-1]:
        on = (sometimes != 0).sum(-1)
        require(
            not (on == routed.shape[-1]).all(),
            f"all {routed.shape[-1]} routed heads are on: keep the {active} largest of a token and "
            "set the others to zero",
        )
        require(
            (on == active).all(),
            f"{active} routed heads must be on for every token, got {int(on.min())} to "
            f"{int(on.max())}: choose along the last dimension",
        )
        require(
            (sometimes[right[..., heads:] != 0] != 0).all(),
            "other heads than the ones with the largest scores are on",
        )
    first, second = way.softmax(-1).split(1, dim=-1)
    require(
        not close(always, second * shared.softmax(-1)),
        "the two ways are exchanged: alpha_1 goes to the shared heads",
    )
    require(
        not close(always, way.sigmoid()[..., :1] * shared.softmax(-1)),
        "the two ways are a softmax together: alpha_1 + alpha_2 = 1",
    )
    require(not close(always, shared.softmax(-1)), "the shared gates lack the factor alpha_1")
    require(
        not close(always, first.expand_as(always)) or heads == 1,
        "shared heads have a softmax of their own scores, times alpha_1",
    )
    require(
        not close(always, 2 * heads * first * shared.softmax(-1)),
        "these gates are scaled to a mean of one; equation 5 has no such factors",
    )
    require(close(always, right[..., :heads]), "the shared gates are wrong")
    total = sometimes.sum(-1, keepdim=True)
    require(
        active == routed.shape[-1] or not close(total, second),
        "the routed gates are divided by the sum of the chosen: softmax over ALL routed heads, "
        "then keep the largest",
    )
    require(close(gates, right), "the routed gates are wrong: alpha_2 softmax(routed), kept")


def two_way(shared: Tensor, routed: Tensor, way: Tensor, active: int) -> Tensor:
    """The right gates."""
    kept = torch.zeros_like(routed).scatter(-1, routed.topk(active, dim=-1).indices, 1.0)
    first, second = way.softmax(-1).split(1, dim=-1)
    return torch.cat((first * shared.softmax(-1), second * kept * routed.softmax(-1)), dim=-1)


solution("5.2.3")(two_way)


@mutant("5.2.3", "routed heads are on: keep")
def nothing_skipped(shared, routed, way, active):
    return two_way(shared, routed, way, routed.shape[-1])


@mutant("5.2.3", "choose along the last dimension")
def one_choice_for_all_tokens(shared, routed, way, active):
    limit = routed.flatten().topk(active * routed[..., 0].numel()).values[-1]
    first, second = way.softmax(-1).split(1, dim=-1)
    kept = routed.softmax(-1) * (routed >= limit)
    return torch.cat((first * shared.softmax(-1), second * kept), dim=-1)


@mutant("5.2.3", "largest scores are on")
def smallest_kept(shared, routed, way, active):
    kept = torch.zeros_like(routed).scatter(-1, (-routed).topk(active, dim=-1).indices, 1.0)
    first, second = way.softmax(-1).split(1, dim=-1)
    return torch.cat((first * shared.softmax(-1), second * kept * routed.softmax(-1)), dim=-1)


@mutant("5.2.3", "exchanged")
def ways_exchanged(shared, routed, way, active):
    return two_way(shared, routed, way.flip(-1), active)


@mutant("5.2.3", "a softmax together")
def two_sigmoids(shared, routed, way, active):
    gates = two_way(shared, routed, 0 * way, active) * 2
    first, second = way.sigmoid().split(1, dim=-1)
    heads = shared.shape[-1]
    return torch.cat((first * gates[..., :heads], second * gates[..., heads:]), dim=-1)


@mutant("5.2.3", "lack the factor")
def no_ways(shared, routed, way, active):
    return two_way(shared, routed, 0 * way, active) * 2


@mutant("5.2.3", "a softmax of their own scores")
def shared_all_alike(shared, routed, way, active):
    gates, heads = two_way(shared, routed, way, active), shared.shape[-1]
    first = way.softmax(-1)[..., :1].expand_as(shared)
    return torch.cat((first, gates[..., heads:]), dim=-1)


@mutant("5.2.3", "has no such factors")
def scaled_to_one(shared, routed, way, active):
    gates, heads = 2 * two_way(shared, routed, way, active), shared.shape[-1]
    return torch.cat((heads * gates[..., :heads], active * gates[..., heads:]), dim=-1)


@mutant("5.2.3", "softmax over ALL")
def chosen_before_the_softmax(shared, routed, way, active):
    limit = routed.topk(active, dim=-1).values[..., -1:]
    closed = routed.masked_fill(routed < limit, -torch.inf)
    first, second = way.softmax(-1).split(1, dim=-1)
    return torch.cat((first * shared.softmax(-1), second * closed.softmax(-1)), dim=-1)


@mutant("5.2.3", "must have shape")
def routed_alone(shared, routed, way, active):
    return two_way(shared, routed, way, active)[..., shared.shape[-1] :]


# ---- 5.2.4 heads that do not read where they are not chosen


@checker("5.2.4")
def heads_that_skip(answer) -> str:
    """Causal attention for the chosen queries alone, zero elsewhere, and no more operations."""
    for heads, length, share in ((1, 6, 1.0), (3, 9, 0.5), (2, 33, 0.3), (3, 8, 0.0)):
        *tensors, chosen = chosen_inputs(heads, length, share)
        read = tensor_of(call(answer, *tensors, chosen), (heads, length, 2), "the read")
        _name_skipping(read, tensors, chosen)
    *tensors, chosen = chosen_inputs(4, 64, 0.25)
    most = 2 * int(chosen.sum()) * 64 * (4 + 2)
    with FlopCounterMode(display=False) as counted:
        answer(*tensors, chosen)
    require(
        counted.get_total_flops() <= most,
        f"{counted.get_total_flops()} operations for {int(chosen.sum())} chosen queries, expected "
        f"at most {most}: gather the chosen queries BEFORE the products",
    )
    return "Equal to the table with zeros, for a quarter of its operations with a quarter chosen."


def chosen_inputs(heads: int, length: int, share: float) -> list[Tensor]:
    """query, key (heads, N, 4), value (heads, N, 2) and who is chosen (heads, N)."""
    *tensors, chance = random(524, (heads, length, 4), (heads, length, 4), (heads, length, 2), (9,))
    generator = torch.Generator().manual_seed(524 + length + len(chance))
    return [*tensors, torch.rand(heads, length, generator=generator) < share]


def masked_reads(query: Tensor, key: Tensor, value: Tensor, causal: bool = True) -> Tensor:
    """Softmax attention of all heads for all queries."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ value


def _name_skipping(read: Tensor, tensors: list[Tensor], chosen: Tensor) -> None:
    query, key, value = tensors
    every = masked_reads(*tensors)
    right = every * chosen[..., None]
    if close(read, right):
        return
    where = f"{len(query)} heads, {query.shape[-2]} tokens, {int(chosen.sum())} chosen"
    first = skip(query, key, value, chosen[:1].expand_as(chosen))
    require(
        not close(read, first),
        f"{where}: all heads read for the tokens that the first head was chosen for",
    )
    off = read[~chosen]
    require(
        off.isfinite().all() and bool((off == 0).all()),
        f"{where}: a head that is not chosen must read exactly zero; start from zeros",
    )
    require(
        not close(read, masked_reads(*tensors, causal=False) * chosen[..., None]),
        f"{where}: later tokens are read; a query sees the keys up to its own place",
    )
    bare = masked_reads(2 * query, key, value) * chosen[..., None]
    require(not close(read, bare), f"{where}: the scale 1 / sqrt(D) is missing")
    for name, other in _gone_wrong(*tensors, chosen).items():
        require(not close(read, other), f"{where}: {name}")
    require(False, f"{where}: wrong; compare with the table of all reads times chosen")


def _gone_wrong(query: Tensor, key: Tensor, value: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    return {
        "the mask takes a query's place among the gathered; it must follow its own place": skip(
            query, key, value, chosen, place="gathered"
        ),
        "the keys are gathered too: a chosen query sees all keys up to its place": skip(
            query, key, value, chosen, keys="gathered"
        ),
        "a query does not see its own key": skip(query, key, value, chosen, place="before"),
    }


def skip(query, key, value, chosen, place="own", keys="all"):
    """Each head reads for the queries that chose it, and the ways in which that goes wrong."""
    out = torch.zeros_like(value)
    for head, rows in enumerate(chosen):
        places = rows.nonzero()[:, 0]
        seen = places if keys == "gathered" else torch.arange(key.shape[-2])
        limit = {"own": places, "gathered": torch.arange(len(places)), "before": places - 1}[place]
        scores = query[head, places] @ key[head, seen].T * query.shape[-1] ** -0.5
        scores = scores.masked_fill(seen > limit[:, None], -torch.inf)
        out[head, places] = scores.softmax(-1).nan_to_num() @ value[head, seen]
    return out


@solution("5.2.4")
def skipped_heads(query, key, value, chosen):
    return skip(query, key, value, chosen)


@mutant("5.2.4", "it must follow its own place")
def place_among_the_gathered(query, key, value, chosen):
    return skip(query, key, value, chosen, place="gathered")


@mutant("5.2.4", "the keys are gathered too")
def keys_gathered(query, key, value, chosen):
    return skip(query, key, value, chosen, keys="gathered")


@mutant("5.2.4", "a query does not see its own key")
def strictly_before(query, key, value, chosen):
    return skip(query, key, value, chosen, place="before")


@mutant("5.2.4", "the first head was chosen for")
def rows_of_the_first_head(query, key, value, chosen):
    return skip(query, key, value, chosen[:1].expand_as(chosen))


@mutant("5.2.4", "BEFORE the products")
def zeros_after_the_products(query, key, value, chosen):
    return masked_reads(query, key, value) * chosen[..., None]


@mutant("5.2.4", "later tokens are read")
def no_mask(query, key, value, chosen):
    return masked_reads(query, key, value, causal=False) * chosen[..., None]


@mutant("5.2.4", "start from zeros")
def all_read(query, key, value, chosen):
    return masked_reads(query, key, value)


@mutant("5.2.4", "the scale")
def no_scale(query, key, value, chosen):
    return skip(query * query.shape[-1] ** 0.5, key, value, chosen)


@mutant("5.2.4", "your function raised")
def needs_somebody(query, key, value, chosen):
    """Takes the keys up to a head's last chosen query, which a head for nobody does not have."""
    out = torch.zeros_like(value)
    for head, rows in enumerate(chosen):
        seen = slice(0, int(rows.nonzero().max()) + 1)
        one = (x[head : head + 1, seen] for x in (query, key, value, chosen))
        out[head, seen] = skip(*one)[0]
    return out


# ---- 5.2.5 a loss that levels the load


@checker("5.2.5")
def loss_of_the_load(answer) -> str:
    """H sum_h f_h P_h with f counted and P a mean of softmaxes, and the gradient of P alone."""
    for tokens, heads, active in ((12, 4, 1), (30, 6, 2)):
        scores = random(525, (tokens, heads))[0].requires_grad_()
        loss = call(answer, scores, active)
        require(
            isinstance(loss, Tensor) and loss.numel() == 1,
            f"return one number as a tensor, got {type(loss).__name__}",
        )
        _name_loss(loss.reshape(()), scores, active)
        require(
            loss.requires_grad,
            "the loss has no gradient: f is counted and has none, P must keep its own",
        )
        (got,) = torch.autograd.grad(loss.reshape(()), scores)
        (wanted,) = torch.autograd.grad(level_load(scores, active), scores)
        require(
            not close(got, -wanted), "the gradient has the wrong sign: is something subtracted?"
        )
        require(
            close(got, wanted), "right value, wrong gradient: f must be counted, P not detached"
        )
    return "One for a level load, heads / active for a collapsed one; mean shares have the slope."


def _name_loss(loss: Tensor, scores: Tensor, active: int) -> None:
    heads, (tokens, _) = scores.shape[-1], scores.shape
    right = level_load(scores, active)
    if close(loss, right):
        return
    chances = scores.softmax(-1)
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(active, dim=-1).indices, 1.0)
    mean = chances.mean(0)
    first = torch.zeros_like(scores).scatter(-1, scores.topk(1, dim=-1).indices, 1.0)
    likely = {
        "the factor H is missing": right / heads,
        "f sums to active: it is each head's share of all choices": right * active,
        "P is a sum over tokens, not their mean": right * tokens,
        "f is made of the probabilities: count who was chosen": heads * (mean * mean).sum(),
        "f and P are multiplied token by token; average each over the tokens first": heads
        * (chosen / active * chances).mean(0).sum(),
        "P counts the chosen too; it is the mean of the softmax": heads
        * (chosen.mean(0) / active).square().sum(),
        "only each token's first choice is counted": heads * (first.mean(0) * mean).sum(),
        "the softmax runs over the tokens; it runs over the heads": heads
        * (chosen.mean(0) / active * scores.softmax(0).mean(0)).sum(),
    }
    for name, other in likely.items():
        require(not close(loss, other), name)
    require(False, f"got {float(loss):.4f}, expected {float(right):.4f}: H sum_h f_h P_h")


def level_load(scores: Tensor, active: int) -> Tensor:
    """The right loss."""
    heads = scores.shape[-1]
    chosen = scores.topk(active, dim=-1).indices.flatten()
    share = torch.bincount(chosen, minlength=heads) / len(chosen)
    return heads * (share * scores.softmax(-1).mean(0)).sum()


solution("5.2.5")(level_load)


@mutant("5.2.5", "the factor H is missing")
def without_heads(scores, active):
    return level_load(scores, active) / scores.shape[-1]


@mutant("5.2.5", "f sums to active")
def shares_of_tokens(scores, active):
    return level_load(scores, active) * active


@mutant("5.2.5", "not their mean")
def summed_over_tokens(scores, active):
    return level_load(scores, active) * len(scores)


@mutant("5.2.5", "count who was chosen")
def probabilities_twice(scores, active):
    mean = scores.softmax(-1).mean(0)
    return scores.shape[-1] * (mean * mean).sum()


@mutant("5.2.5", "token by token")
def product_before_the_mean(scores, active):
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(active, dim=-1).indices, 1.0)
    return scores.shape[-1] * (chosen / active * scores.softmax(-1)).mean(0).sum()


@mutant("5.2.5", "first choice is counted")
def first_choices(scores, active):
    share = torch.bincount(scores.argmax(-1), minlength=scores.shape[-1]) / len(scores)
    return scores.shape[-1] * (share * scores.softmax(-1).mean(0)).sum()


@mutant("5.2.5", "runs over the heads")
def softmax_over_tokens(scores, active):
    chosen = scores.topk(active, dim=-1).indices.flatten()
    share = torch.bincount(chosen, minlength=scores.shape[-1]) / len(chosen)
    return scores.shape[-1] * (share * scores.softmax(0).mean(0)).sum()


@mutant("5.2.5", "has no gradient")
def all_detached(scores, active):
    return level_load(scores.detach(), active)


@mutant("5.2.5", "wrong gradient")
def gradient_through_the_count(scores, active):
    loss = level_load(scores, active)
    return loss + (loss - loss.detach())


@mutant("5.2.5", "return one number")
def a_number_a_head(scores, active):
    return scores.shape[-1] * scores.softmax(-1).mean(0)
