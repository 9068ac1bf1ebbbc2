"""The exercises of chapter 5.2 that are answered with numbers, and its puzzle."""

import math

import torch
from torch import Tensor

from attnlib.exercises.answers import call, close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 5.2.1 gates by hand


@checker("5.2.1")
def gates_by_hand(answer) -> str:
    """All gates at one (5, 5); gates (1/2, 0, 1): (4, 2); an expert; a mixture of experts."""
    whole, gated, expert, mixture = numbers(answer, 8).view(4, 2).tolist()
    likely = (
        ((2, 5), "that is one head too few: the third head writes into both coordinates"),
        ((11, 0), "the reads are added before they are projected: each head has its own W_O"),
        ((5 / 3, 5 / 3), "that is the mean; multi-head attention is the sum of its heads"),
    )
    for wrong, message in likely:
        require(not close(whole, wrong, 1e-3), f"all gates at one: {message}")
    require(close(whole, (5, 5), 1e-3), "all gates at one: add up y_h = o_h W_h of the three heads")
    likely = (
        ((8 / 3, 4 / 3), "divided by the sum of the gates, which nobody asked for"),
        ((7 / 2, 1), "the gates in the wrong order: the first head has 1/2, the third 1"),
        ((5, 5), "that is the sum with all gates at one"),
    )
    for wrong, message in likely:
        require(not close(gated, wrong, 1e-3), f"gates (1/2, 0, 1): {message}")
    require(close(gated, (4, 2), 1e-3), "gates (1/2, 0, 1): multiply each y_h, then add up")
    likely = (
        ((3, 5), "the factor H / (H - 1) is missing"),
        ((3, 0), "that is head 1 alone; expert 1 is all heads but head 1"),
        ((2, 10 / 3), "the factor is upside down: it makes up for the missing head"),
    )
    for wrong, message in likely:
        require(not close(expert, wrong, 1e-3), f"expert 1: {message}")
    require(close(expert, (9 / 2, 15 / 2), 1e-3), "expert 1: 3/2 of y_2 + y_3")
    likely = (
        ((7 / 4, 5 / 4), "the gates are on experts, not on heads: head j is missing from expert j"),
        ((13 / 4, 15 / 4), "the factor H / (H - 1) is missing"),
        ((5, 5), "that is the mixture with uniform gates"),
    )
    for wrong, message in likely:
        require(not close(mixture, wrong, 1e-3), f"the mixture: {message}")
    require(
        close(mixture, (39 / 8, 45 / 8), 1e-3),
        "the mixture: head j comes with the factor 3/2 (1 - g_j)",
    )
    return "Trusting expert 1 most means reading head 1 least."


WHOLE, GATED, EXPERT, MIXTURE = (5, 5), (4, 2), (9 / 2, 15 / 2), (39 / 8, 45 / 8)
solution("5.2.1")((*WHOLE, *GATED, *EXPERT, *MIXTURE))
mutant("5.2.1", "before they are projected", "reads added")((11, 0, *GATED, *EXPERT, *MIXTURE))
mutant("5.2.1", "that is the mean", "mean")((5 / 3, 5 / 3, *GATED, *EXPERT, *MIXTURE))
mutant("5.2.1", "one head too few", "two heads")((2, 5, *GATED, *EXPERT, *MIXTURE))
mutant("5.2.1", "divided by the sum", "renormalized")((*WHOLE, 8 / 3, 4 / 3, *EXPERT, *MIXTURE))
mutant("5.2.1", "in the wrong order", "reversed gates")((*WHOLE, 7 / 2, 1, *EXPERT, *MIXTURE))
mutant("5.2.1", "expert 1: the factor", "expert unscaled")((*WHOLE, *GATED, 3, 5, *MIXTURE))
mutant("5.2.1", "head 1 alone", "the left-out head")((*WHOLE, *GATED, 3, 0, *MIXTURE))
mutant("5.2.1", "upside down", "factor below one")((*WHOLE, *GATED, 2, 10 / 3, *MIXTURE))
mutant("5.2.1", "not on heads", "gates on heads")((*WHOLE, *GATED, *EXPERT, 7 / 4, 5 / 4))
mutant("5.2.1", "mixture: the factor", "unscaled")((*WHOLE, *GATED, *EXPERT, 13 / 4, 15 / 4))
mutant("5.2.1", "with uniform gates", "uniform")((*WHOLE, *GATED, *EXPERT, 5, 5))

# ---- 5.2.2 the balance loss by hand


@checker("5.2.2")
def balance_by_hand(answer) -> str:
    """Level 1, collapsed 2, slopes 3/64 and -3/64, zero at 1/2, eight heads with two active 4."""
    level, collapsed, first, second, still, eight = numbers(answer, 6).tolist()
    require(not close(level, 1 / 2, 1e-3), "level: the factor H is missing")
    require(close(level, 1, 1e-3), "level: 2 (1/2 1/2 + 1/2 1/2)")
    require(not close(collapsed, 1, 1e-3), "collapsed: the factor H is missing")
    require(close(collapsed, 2, 1e-3), "collapsed: f = P = (1, 0)")
    likely = (
        (3 / 16, "the mean over the 4 tokens is missing: P is a mean"),
        (3 / 128, "the factor H is missing"),
        (-3 / 64, "the sign: more score for the loaded head raises the loss"),
        (9 / 128, "the softmax moves P_2 as well, by as much down as P_1 goes up"),
        (1 / 4, "the softmax has a slope: dp_1 / dz_1 = p_1 (1 - p_1)"),
    )
    for wrong, message in likely:
        require(not close(first, wrong, 1e-4), f"the slope for head 1: {message}")
    require(close(first, 3 / 64, 1e-4), "the slope for head 1: (H / T) p_1 (1 - p_1) (f_1 - f_2)")
    require(
        not close(second, 3 / 64, 1e-4),
        "the slope for head 2: the sign; what raises one score's share lowers the other's",
    )
    require(close(second, -3 / 64, 1e-4), "the slope for head 2: minus that for head 1")
    require(
        not close(still, 3 / 4, 1e-3),
        "no slope: the slope has the factor f_1 - f_2, whatever p is",
    )
    require(close(still, 1 / 2, 1e-3), "no slope: where f_1 = f_2")
    likely = (
        (8, "f must sum to one, not to k = 2: each of the two has half of all choices"),
        (1, "that is a level load"),
        (2, "each of the two has half of the choices: f = P = 1/2"),
    )
    for wrong, message in likely:
        require(not close(eight, wrong, 1e-3), f"eight heads: {message}")
    require(close(eight, 4, 1e-3), "eight heads: H / k")
    return "The loss pushes a score down in proportion to how far its load lies above the mean."


solution("5.2.2")((1, 2, 3 / 64, -3 / 64, 1 / 2, 4))
mutant("5.2.2", "level: the factor H", "no factor")((0.5, 2, 3 / 64, -3 / 64, 0.5, 4))
mutant("5.2.2", "collapsed: the factor H", "no factor at 2")((1, 1, 3 / 64, -3 / 64, 0.5, 4))
mutant("5.2.2", "the mean over the 4 tokens", "sum")((1, 2, 3 / 16, -3 / 16, 0.5, 4))
mutant("5.2.2", "head 1: the factor H", "slope unscaled")((1, 2, 3 / 128, -3 / 128, 0.5, 4))
mutant("5.2.2", "raises the loss", "sign")((1, 2, -3 / 64, 3 / 64, 0.5, 4))
mutant("5.2.2", "moves P_2 as well", "one term only")((1, 2, 9 / 128, -9 / 128, 0.5, 4))
mutant("5.2.2", "softmax has a slope", "no softmax")((1, 2, 1 / 4, -1 / 4, 0.5, 4))
mutant("5.2.2", "head 2: the sign", "same sign")((1, 2, 3 / 64, 3 / 64, 0.5, 4))
mutant("5.2.2", "no slope", "zero at f = p")((1, 2, 3 / 64, -3 / 64, 0.75, 4))
mutant("5.2.2", "not to k", "f sums to k")((1, 2, 3 / 64, -3 / 64, 0.5, 8))
mutant("5.2.2", "half of the choices", "one head of two")((1, 2, 3 / 64, -3 / 64, 0.5, 2))

# ---- 5.2.6 jumps of two routers

JUMP = math.exp(math.sqrt(0.5)) / (math.e + math.exp(math.sqrt(0.5)))
UNSHARED = math.exp(math.sqrt(0.5)) / sum(math.exp(math.cos(h * math.pi / 4)) for h in range(8))


@checker("5.2.6")
def jumps_of_routers(answer) -> str:
    """Eight jumps of top-2 gates, none of ReLU gates, and the size of the largest."""
    jumps, smooth, largest = numbers(answer, 3).tolist()
    require(
        not (jumps == 0 and smooth == 8),
        "the first two are exchanged: the jumps of top-2 come first",
    )
    require(
        jumps != 16,
        "top-2: two gates change at each jump; count places on the circle, not gates",
    )
    require(
        jumps not in (7, 9),
        f"top-2: {jumps:.0f} is one off; compare each of the 2001 places with the one before",
    )
    require(
        jumps != 2000,
        "top-2: every step changes a gate a little; a jump is a change above 0.1",
    )
    require(jumps == 8, f"top-2: {jumps:.0f} jumps, expected one where x points at each head")
    require(
        smooth not in (8, 16),
        "ReLU: heads open and close there, but from zero on: no gate changes by more than 0.1",
    )
    require(smooth == 0, f"ReLU: {smooth:.0f} jumps, expected none: the gate is continuous in x")
    likely = (
        (UNSHARED, "the gates are those of top_k_gates; take renormalized_gates, which sum to one"),
        (1.0, "that is with one active head; take two"),
        (1 - JUMP, "that is the gate of the head that stays; what jumps is the other one"),
    )
    for wrong, message in likely:
        require(abs(largest - wrong) > 0.01, f"the largest change: {message}")
    require(
        abs(largest - JUMP) < 0.01,
        f"the largest change: {largest:.3f}; it is a whole gate that moves from a head to another",
    )
    return "At each head's direction the second choice changes, and with it a gate of 0.43."


solution("5.2.6")((8, 0, JUMP))
mutant("5.2.6", "exchanged", "exchanged")((0, 8, JUMP))
mutant("5.2.6", "not gates", "gates counted")((16, 0, JUMP))
mutant("5.2.6", "is one off", "one missed")((7, 0, JUMP))
mutant("5.2.6", "changes a gate a little", "no threshold")((2000, 0, JUMP))
mutant("5.2.6", "from zero on", "openings counted")((8, 16, JUMP))
mutant("5.2.6", "which sum to one", "not renormalized")((8, 0, UNSHARED))
mutant("5.2.6", "one active head", "top-1")((8, 0, 1.0))
mutant("5.2.6", "the head that stays", "the other gate")((8, 0, 1 - JUMP))
mutant("5.2.6", "it is a whole gate", "sum of changes")((8, 0, 2 * JUMP))

# ---- 5.2.7 a property that exposes wrong mixtures


@checker("5.2.7")
def property_that_exposes_mixture_bugs(answer) -> str:
    """A function mixture -> bool: True for right mixtures, False for five that are wrong."""
    for name, mixture in RIGHT_MIXTURES.items():
        require(_verdict(answer, mixture), f"your property rejects a right mixture: {name}")
    for name, mixture in BUGS.items():
        require(
            not _verdict(answer, mixture), f"your property accepts a mixture with a bug: {name}"
        )
    return "Two right mixtures pass, five bugs do not."


def _verdict(answer, mixture) -> bool:
    def unnamed(query, key, value, scores, active):
        return mixture(query, key, value, scores, active)

    verdict = call(answer, unnamed)
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    require(isinstance(verdict, bool), f"return True or False, got {type(verdict).__name__}")
    return verdict


def _chosen(scores, active):
    return torch.zeros_like(scores).scatter(-1, scores.topk(active, dim=-1).indices, 1.0)


def _gates(scores, active):
    kept = scores.softmax(-1) * _chosen(scores, active)
    return kept / kept.sum(-1, keepdim=True)


def _reads(query, key, value, places=None):
    """Causal softmax attention of each head; `places` are the queries' positions."""
    places = torch.arange(query.shape[-2]) if places is None else places
    seen = torch.arange(key.shape[-2]) <= places[:, None]
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


def _right(query, key, value, scores, active):
    return (_gates(scores, active).T[..., None] * _reads(query, key, value)).sum(0)


def _skipping(query, key, value, scores, active):
    """Each head reads for the tokens that chose it, at their own places; divided in the end."""
    kept, out = scores.softmax(-1) * _chosen(scores, active), torch.zeros_like(value[0])
    for head in range(len(query)):
        places = kept[:, head].nonzero()[:, 0]
        read = _reads(query[head, places], key[head], value[head], places)
        out = out.index_add(0, places, kept[places, head, None] * read)
    return out / kept.sum(-1, keepdim=True)


def _gates_of_the_token_before(query, key, value, scores, active):
    return _right(query, key, value, scores.roll(1, dims=0), active)


def _shares_of_all_heads(query, key, value, scores, active):
    gates = scores.softmax(-1) * _chosen(scores, active)
    return (gates.T[..., None] * _reads(query, key, value)).sum(0)


def _heads_choose_tokens(query, key, value, scores, active):
    count = max(1, active * len(scores) // scores.shape[-1])
    chosen = torch.zeros_like(scores).scatter(0, scores.topk(count, dim=0).indices, 1.0)
    kept = scores.softmax(-1) * chosen
    gates = kept / kept.sum(-1, keepdim=True).clamp(min=1e-9)
    return (gates.T[..., None] * _reads(query, key, value)).sum(0)


def _masked_after_gathering(query, key, value, scores, active):
    gates, out = _gates(scores, active), torch.zeros_like(value[0])
    for head in range(len(query)):
        places = gates[:, head].nonzero()[:, 0]
        read = _reads(query[head, places], key[head], value[head])
        out = out.index_add(0, places, gates[places, head, None] * read)
    return out


def _gated_twice(query, key, value, scores, active):
    return (_gates(scores, active).T[..., None] ** 2 * _reads(query, key, value)).sum(0)


RIGHT_MIXTURES = {
    "the plain one": _right,
    "one that skips heads and divides in the end (compare with a tolerance)": _skipping,
}
BUGS = {
    "every token takes the gates of the token before it": _gates_of_the_token_before,
    "the gates are divided by the share of all heads, not of the chosen ones": _shares_of_all_heads,
    "heads choose tokens, so a later token decides who reads for an earlier": _heads_choose_tokens,
    "a gathered query is masked by its place among the gathered": _masked_after_gathering,
    "the gate is applied twice": _gated_twice,
}


def _trial(length=7, heads=4):
    generator = torch.Generator().manual_seed(527)
    query, key, value = torch.randn(3, heads, length, 3, generator=generator).double()
    return query, key, value, torch.randn(length, heads, generator=generator).double()


@solution("5.2.7")
def all_heads_and_a_table_of_gates(mixture) -> bool:
    """The sum over all heads, each masked with its own places, times a table of gates."""
    query, key, value, scores = _trial()
    gates = torch.zeros_like(scores)
    for token, row in enumerate(scores):
        best = row.topk(2).indices
        gates[token, best] = row[best].softmax(-1)
    table = (query @ key.mT / 3**0.5).exp().tril()
    reads = table / table.sum(-1, keepdim=True) @ value
    wanted = torch.einsum("nh,hne->ne", gates, reads)
    return torch.allclose(mixture(query, key, value, scores, 2), wanted)


@mutant("5.2.7", "takes the gates of the token before")
def always_true(mixture):
    return True


@mutant("5.2.7", "rejects a right mixture: the plain one")
def always_false(mixture):
    return False


@mutant("5.2.7", "divides in the end")
def exactly_equal(mixture):
    *tensors, scores = _trial()
    return torch.equal(mixture(*tensors, scores, 2), _right(*tensors, scores, 2))


@mutant("5.2.7", "takes the gates of the token before")
def gates_sum_to_one(mixture):
    query, key, value, scores = _trial()
    ones = torch.ones_like(value)
    return torch.allclose(mixture(query, key, ones, scores, 2), ones[0])


@mutant("5.2.7", "not of the chosen ones")
def the_future_changes_nothing_and_own_gates(mixture):
    """Causal, and another score of one token changes that token alone: no word on the sum."""
    query, key, value, scores = _trial()
    read = mixture(query, key, value, scores, 2)
    moved = scores.clone()
    moved[3] = scores[3].flip(0)
    changed = (mixture(query, key, value, moved, 2) - read).abs().amax(-1) > 1e-9
    later = value.clone()
    later[:, 4:] += 1
    causal = torch.allclose(mixture(query, key, later, scores, 2)[:4], read[:4])
    return causal and changed.tolist() == [place == 3 for place in range(7)]


@mutant("5.2.7", "among the gathered")
def all_heads_active(mixture):
    """With all heads active nothing is gathered, and one bug cannot show; nor can a choice."""
    query, key, value, scores = _trial()
    whole = torch.allclose(mixture(query, key, value, scores, 4), _right(*_trial(), 4))
    two = mixture(query, key, torch.ones_like(value), scores, 2)
    return whole and torch.allclose(two, torch.ones_like(two))


@mutant("5.2.7", "the gate is applied twice")
def one_active_head(mixture):
    """With one active head its gate is one, and so is its square; only shares are checked more."""
    *tensors, scores = _trial()
    one = torch.allclose(mixture(*tensors, scores, 1), _right(*tensors, scores, 1))
    return one


@mutant("5.2.7", "return True or False")
def a_difference(mixture):
    *tensors, scores = _trial()
    return (mixture(*tensors, scores, 2) - _right(*tensors, scores, 2)).abs()
