"""Checked exercises of chapter 6.1, the support chosen by content: derivations and measurements."""

import torch
from torch import Tensor

from attnlib.exercises.answers import call, close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 6.1.1 the read without a share of the weight


@checker("6.1.1")
def dropped_weight(answer) -> str:
    """Full read 3/2, error 1/2, largest error 2/5, kept share 3/4, least number of keys 3."""
    full, error, largest, kept, least = numbers(answer, 5).tolist()
    likely = (
        (2.0, "that is the mean of 1 and 3; the dropped part has the share 1/4, not 1/2"),
        (2.5, "the shares are exchanged: 1/4 is the dropped one, whose mean is 3"),
        (7 / 4, "the kept part has the share 1 - 1/4, not 1"),
        (4.0, "multiply each mean by its share before you add them"),
    )
    for wrong, message in likely:
        require(not close(full, wrong, 1e-3), f"the full read: {message}")
    require(close(full, 1.5, 1e-3), "the full read: (1 - delta) kept mean + delta rest mean")
    likely = (
        (2.0, "that is the distance of the two means; the error is delta times that"),
        (3 / 4, "delta times the rest alone; the kept part is divided by its sum, and so it grows"),
        (1 / 4, "that is delta; it is multiplied by the distance of the two means"),
        (-0.5, "an error is a size here: the absolute value"),
    )
    for wrong, message in likely:
        require(not close(error, wrong, 1e-3), f"the error: {message}")
    require(close(error, 0.5, 1e-3), "the error: delta |rest mean - kept mean|")
    likely = (
        (0.2, "two means in [-2, 2] may be 4 apart, not 2"),
        (4.0, "the factor delta is missing"),
        (0.1, "that is delta; how far apart can two means be?"),
    )
    for wrong, message in likely:
        require(not close(largest, wrong, 1e-3), f"the largest error: {message}")
    require(close(largest, 0.4, 1e-3), "the largest error: delta times the largest distance")
    likely = (
        (1 / 4, "that is the share dropped"),
        (1 / 2, "two keys are kept: add the largest two weights"),
    )
    for wrong, message in likely:
        require(not close(kept, wrong, 1e-3), f"the kept share: {message}")
    require(close(kept, 0.75, 1e-3), "the kept share: the sum of the two largest weights")
    require(least != 2, "the least number: two keys keep 3/4, which is below 0.8")
    require(least != 4, "the least number: three are enough; they keep 7/8")
    require(least == 3, "the least number: add weights, largest first, until 0.8 is reached")
    return "What is lost hangs on the share dropped and on how different the dropped values are."


FULL, ERROR, LARGEST, KEPT, LEAST = 1.5, 0.5, 0.4, 0.75, 3
solution("6.1.1")((FULL, ERROR, LARGEST, KEPT, LEAST))
mutant("6.1.1", "the mean of 1 and 3", "mean")((2, ERROR, LARGEST, KEPT, LEAST))
mutant("6.1.1", "shares are exchanged", "exchanged")((2.5, ERROR, LARGEST, KEPT, LEAST))
mutant("6.1.1", "by its share", "plain sum")((4, ERROR, LARGEST, KEPT, LEAST))
mutant("6.1.1", "has the share 1 - 1/4", "kept whole")((1.75, ERROR, LARGEST, KEPT, LEAST))
mutant("6.1.1", "distance of the two means; the", "distance")((FULL, 2, LARGEST, KEPT, LEAST))
mutant("6.1.1", "and so it grows", "rest alone")((FULL, 0.75, LARGEST, KEPT, LEAST))
mutant("6.1.1", "absolute value", "signed")((FULL, -0.5, LARGEST, KEPT, LEAST))
mutant("6.1.1", "4 apart", "half the range")((FULL, ERROR, 0.2, KEPT, LEAST))
mutant("6.1.1", "factor delta is missing", "no share")((FULL, ERROR, 4, KEPT, LEAST))
mutant("6.1.1", "the share dropped", "dropped share")((FULL, ERROR, LARGEST, 0.25, LEAST))
mutant("6.1.1", "add the largest two", "one weight")((FULL, ERROR, LARGEST, 0.5, LEAST))
mutant("6.1.1", "below 0.8", "two keys")((FULL, ERROR, LARGEST, KEPT, 2))
mutant("6.1.1", "three are enough", "all keys")((FULL, ERROR, LARGEST, KEPT, 4))

# ---- 6.1.2 what deciding costs


@checker("6.1.2")
def cost_of_deciding(answer) -> str:
    """100 groups, 1.28e8 operations, a share of 0.02, exponent 3/2, 255 scores."""
    groups, operations, share, exponent, scores = numbers(answer, 5).tolist()
    likely = (
        (5000**0.5, "that is sqrt(N): the pairs inside the groups cost 4 N^2 D / G, not 2"),
        (50.0, "sqrt(N / 2): is the factor 2 on the wrong side?"),
        (10_000.0, "set the slope in G to zero: 2 N D = 4 N^2 D / G^2, and take the root"),
    )
    for wrong, message in likely:
        require(not close(groups, wrong, 1e-3), f"the groups: {message}")
    require(close(groups, 100, 1e-3), "the groups: where the two costs are equal, G = sqrt(2 N)")
    likely = (
        (6.4e7, "that is one of the two parts; where the sum is least they are equal"),
        (2e6, "the width D = 64 is missing"),
        (6.4e9, "that is full attention"),
    )
    for wrong, message in likely:
        require(not close(operations, wrong, 1e-3), f"the operations: {message}")
    require(close(operations, 1.28e8, 1e-3), "the operations: 2 N G D + 4 N^2 D / G at G = 100")
    likely = (
        (0.01, "1 / G is the part inside the groups alone; deciding costs as much again"),
        (50.0, "upside down: the routed head over full attention's 4 N^2 D"),
        (0.04, "full attention costs 4 N^2 D: scores and reads"),
    )
    for wrong, message in likely:
        require(not close(share, wrong, 1e-3), f"the share: {message}")
    require(close(share, 0.02, 1e-3), "the share: the operations over 4 N^2 D")
    likely = (
        (2.0, "2 is that of full attention; G grows with N here"),
        (1.0, "1 would be that of a window; put G = sqrt(2 N) into N G"),
        (0.5, "that is the exponent of G; the cost is N G"),
    )
    for wrong, message in likely:
        require(not close(exponent, wrong, 1e-3), f"the exponent: {message}")
    require(close(exponent, 1.5, 1e-3), "the exponent: N sqrt(N)")
    likely = (
        (192, "the gates are missing: a score for the mean key of every past block"),
        (256, "the own block needs no gate: 63 blocks are past"),
        (63, "that is the gates alone; the chosen keys are scored too"),
        (319, "T = 3 counts the own block"),
        (4096, "that is full attention"),
    )
    for wrong, message in likely:
        require(scores != wrong, f"the scores of the last query: {message}")
    require(scores == 255, "the scores of the last query: 3 blocks of 64 keys and 63 gates")
    return "Deciding and reading cost alike at the best G; neither is free at any N."


GROUPS, OPERATIONS, SHARE, EXPONENT, SCORES = 100, 1.28e8, 0.02, 1.5, 255
solution("6.1.2")((GROUPS, OPERATIONS, SHARE, EXPONENT, SCORES))
mutant("6.1.2", "that is sqrt(N)", "root of N")((70.71, OPERATIONS, SHARE, EXPONENT, SCORES))
mutant("6.1.2", "on the wrong side", "upside down")((50, OPERATIONS, SHARE, EXPONENT, SCORES))
mutant("6.1.2", "take the root", "no root")((10_000, OPERATIONS, SHARE, EXPONENT, SCORES))
mutant("6.1.2", "one of the two parts", "one part")((GROUPS, 6.4e7, SHARE, EXPONENT, SCORES))
mutant("6.1.2", "the width D", "no width")((GROUPS, 2e6, SHARE, EXPONENT, SCORES))
mutant("6.1.2", "costs as much again", "inside only")((GROUPS, OPERATIONS, 0.01, EXPONENT, SCORES))
mutant("6.1.2", "share: upside down", "inverse")((GROUPS, OPERATIONS, 50, EXPONENT, SCORES))
mutant("6.1.2", "scores and reads", "scores only")((GROUPS, OPERATIONS, 0.04, EXPONENT, SCORES))
mutant("6.1.2", "that of full attention", "two")((GROUPS, OPERATIONS, SHARE, 2, SCORES))
mutant("6.1.2", "exponent of G", "a half")((GROUPS, OPERATIONS, SHARE, 0.5, SCORES))
mutant("6.1.2", "gates are missing", "no gates")((GROUPS, OPERATIONS, SHARE, EXPONENT, 192))
mutant("6.1.2", "needs no gate", "all gates")((GROUPS, OPERATIONS, SHARE, EXPONENT, 256))
mutant("6.1.2", "counts the own block", "a fourth")((GROUPS, OPERATIONS, SHARE, EXPONENT, 319))

# ---- 6.1.7 the same pairs, scattered and sorted


def groups_of_tokens() -> Tensor:
    """The groups of the exercise."""
    return torch.randint(16, (4096,), generator=torch.Generator().manual_seed(617))


def pairs_and_tiles(group: Tensor, tile: int = 64) -> tuple[float, float]:
    """The share of pairs with the same group, and of tiles that hold such a pair."""
    seen = group[:, None] == group
    rows = len(group) // tile
    touched = seen.view(rows, tile, rows, tile).any(3).any(1)
    return seen.sum().item() / seen.numel(), touched.sum().item() / touched.numel()


@checker("6.1.7")
def scattered_and_sorted(answer) -> str:
    """Share of pairs, share of tiles as the tokens stand, share of tiles after sorting."""
    pairs, scattered, ordered = numbers(answer, 3).tolist()
    group = groups_of_tokens()
    share, all_tiles = pairs_and_tiles(group)
    _, tiles = pairs_and_tiles(group.sort(stable=True).values)
    seed = "are the groups torch.randint(16, (4096,), generator=Generator().manual_seed(617))?"
    require(not close(pairs, 1 - share, 1e-3), "pairs: that is the share of pairs NOT seen")
    require(
        pairs <= 1 and scattered <= 1 and ordered <= 1,
        "shares lie between 0 and 1: divide by the number of pairs (4096^2) or of tiles (64^2)",
    )
    require(not close(pairs, share / 2, 2e-2), "pairs: all pairs count here, not the causal half")
    require(
        abs(pairs - share) < 2e-5,
        f"pairs: {pairs:.5f} is not what these groups give; {seed}",
    )
    require(
        not (close(scattered, tiles, 1e-4) and close(ordered, all_tiles, 1e-4)),
        "the two shares of tiles are exchanged: as they stand first, sorted second",
    )
    require(
        not close(scattered, share, 1e-3),
        "tiles as they stand: a tile is touched if ANY of its 64 x 64 pairs is seen",
    )
    require(
        close(scattered, all_tiles, 1e-4),
        f"tiles as they stand: {scattered:.4f}; among 64 random tokens every group is there",
    )
    require(
        not close(ordered, share, 1e-3),
        "sorted: the border of a group does not fall on the border of a tile, so more than the "
        "share of pairs is touched",
    )
    require(
        not close(ordered, 1.0, 1e-3),
        "sorted: all tiles? sort the groups themselves, and compare the sorted ones",
    )
    require(close(ordered, tiles, 1e-4), f"sorted: {ordered:.4f}; sort stably and count tiles")
    return (
        f"Sorting leaves the pairs as they are and takes {all_tiles:.0%} of tiles to {tiles:.0%}."
    )


PAIRS, SCATTERED = pairs_and_tiles(groups_of_tokens())
_, SORTED = pairs_and_tiles(groups_of_tokens().sort(stable=True).values)
solution("6.1.7")((PAIRS, SCATTERED, SORTED))
mutant("6.1.7", "NOT seen", "complement")((1 - PAIRS, SCATTERED, SORTED))
mutant("6.1.7", "between 0 and 1", "counts")((PAIRS * 4096**2, SCATTERED, SORTED))
mutant("6.1.7", "not the causal half", "causal")((PAIRS / 2, SCATTERED, SORTED))
mutant("6.1.7", "is not what these groups give", "expected value")(
    (1 / 16 + 1e-3, SCATTERED, SORTED)
)
mutant("6.1.7", "are exchanged", "exchanged")((PAIRS, SORTED, SCATTERED))
mutant("6.1.7", "if ANY of its", "pairs for tiles")((PAIRS, PAIRS, SORTED))
mutant("6.1.7", "border of a group", "no borders")((PAIRS, SCATTERED, PAIRS))
mutant("6.1.7", "sorted: all tiles?", "not sorted")((PAIRS, SCATTERED, 1.0))
mutant("6.1.7", "every group is there", "half")((PAIRS, 0.5, SORTED))

# ---- 6.1.8 a property that exposes wrong block attention


@checker("6.1.8")
def property_that_exposes_block_bugs(answer) -> str:
    """A function attention -> bool: True for right block attentions, False for six wrong ones."""
    for name, attention in RIGHT_ATTENTIONS.items():
        require(_verdict(answer, attention), f"your property rejects a right attention: {name}")
    for name, attention in BUGS.items():
        require(
            not _verdict(answer, attention),
            f"your property accepts a wrong attention: {name}",
        )
    return "Two right attentions pass, six bugs do not."


def _verdict(answer, attention) -> bool:
    def unnamed(query, key, value, block_size, top_k):
        return attention(query, key, value, block_size, top_k)

    verdict = call(answer, unnamed)
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    require(isinstance(verdict, bool), f"return True or False, got {type(verdict).__name__}")
    return verdict


def _choice(query: Tensor, key: Tensor, block_size: int, top_k: int, *, sign: int = 1) -> Tensor:
    """Who reads which block: the own one and the best past ones, `top_k` in all."""
    blocks = -(-len(key) // block_size)
    means = torch.stack([part.mean(0) for part in key.split(block_size)])
    own = torch.arange(len(query)) // block_size
    scores = sign * query @ means.T
    scores = scores.masked_fill(torch.arange(blocks) > own[:, None], -torch.inf)
    scores[range(len(query)), own] = torch.inf
    best = scores.topk(min(top_k, blocks), dim=-1)
    return torch.zeros_like(scores).scatter(1, best.indices, 1.0).bool() & (scores > -torch.inf)


def _read(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    scores = query @ key.T * query.shape[-1] ** -0.5
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num() @ value


def _pairs(chosen: Tensor, block_size: int, keys: int, causal: bool = True) -> Tensor:
    allowed = chosen.repeat_interleave(block_size, dim=1)[:, :keys]
    return allowed.tril() if causal else allowed


def _right(query, key, value, block_size, top_k):
    chosen = _choice(query, key, block_size, top_k)
    return _read(query, key, value, _pairs(chosen, block_size, len(key)))


def _merged(query, key, value, block_size, top_k):
    """Block by block: a read and a log-sum for each, merged in the end."""
    chosen = _choice(query, key, block_size, top_k)
    allowed = _pairs(chosen, block_size, len(key))
    scores = query @ key.T * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~allowed, -torch.inf)
    parts = zip(scores.split(block_size, 1), value.split(block_size), strict=True)
    reads, sums = zip(*((s.exp() @ v, s.exp().sum(1)) for s, v in parts), strict=True)
    return sum(reads) / sum(sums)[:, None]


def _own_block_sees_its_future(query, key, value, block_size, top_k):
    chosen = _choice(query, key, block_size, top_k)
    return _read(query, key, value, _pairs(chosen, block_size, len(key), causal=False))


def _own_block_left_out(query, key, value, block_size, top_k):
    chosen = _choice(query, key, block_size, top_k + 1)
    own = torch.arange(len(query)) // block_size
    chosen[range(len(query)), own] = own == 0  # the first block has nothing else
    return _read(query, key, value, _pairs(chosen, block_size, len(key)))


def _worst_blocks(query, key, value, block_size, top_k):
    chosen = _choice(query, key, block_size, top_k, sign=-1)
    return _read(query, key, value, _pairs(chosen, block_size, len(key)))


def _reads_of_blocks_averaged(query, key, value, block_size, top_k):
    chosen = _choice(query, key, block_size, top_k)
    allowed = _pairs(chosen, block_size, len(key))
    blocks = torch.arange(len(key)) // block_size
    reads = [_read(query, key, value, allowed & (blocks == b)) for b in blocks.unique()]
    return sum(reads) / chosen.sum(1, keepdim=True)


def _choice_of_the_blocks_mean_query(query, key, value, block_size, top_k):
    means = [part.mean(0, keepdim=True).expand_as(part) for part in query.split(block_size)]
    chosen = _choice(torch.cat(means), key, block_size, top_k)
    return _read(query, key, value, _pairs(chosen, block_size, len(key)))


def _own_block_not_counted(query, key, value, block_size, top_k):
    return _right(query, key, value, block_size, top_k + 1)


RIGHT_ATTENTIONS = {
    "the plain one": _right,
    "one that merges its blocks in the end (compare with a tolerance)": _merged,
}
BUGS = {
    "a query sees the keys of its own block that come after it": _own_block_sees_its_future,
    "the own block is read by nobody outside the first": _own_block_left_out,
    "the blocks with the LOWEST mean keys are read": _worst_blocks,
    "the reads of the blocks are averaged, whatever their sums": _reads_of_blocks_averaged,
    "all queries of a block choose by their mean, which holds later queries": (
        _choice_of_the_blocks_mean_query
    ),
    "the own block is not counted: one block too many is read": _own_block_not_counted,
}


def _trial(length: int = 24, width: int = 4) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(618)
    return torch.randn(3, length, width, generator=generator).double().unbind(0)


@solution("6.1.8")
def a_loop_over_queries(attention) -> bool:
    """Each query by itself: its past blocks sorted by their mean key, then one softmax."""
    query, key, value = _trial()
    wanted = torch.empty_like(value)
    for i, q in enumerate(query):
        own = i // 4
        likes = [float(q @ key[4 * b : 4 * b + 4].mean(0)) for b in range(own)]
        best = sorted(range(own), key=lambda b, likes=likes: -likes[b])[:2]
        places = [j for b in (*best, own) for j in range(4 * b, 4 * b + 4) if j <= i]
        weights = (key[places] @ q / 4**0.5).softmax(0)
        wanted[i] = weights @ value[places]
    return torch.allclose(attention(query, key, value, 4, 3), wanted)


@mutant("6.1.8", "keys of its own block that come after")
def always_true(attention):
    return True


@mutant("6.1.8", "rejects a right attention: the plain one")
def always_false(attention):
    return False


@mutant("6.1.8", "merges its blocks in the end")
def equal_to_the_last_bit(attention):
    return torch.equal(attention(*_trial(), 4, 3), _right(*_trial(), 4, 3))


@mutant("6.1.8", "by nobody outside the first")
def only_the_future(attention):
    """Changing later keys, values and queries changes nothing before; all bugs but two pass."""
    query, key, value = _trial()
    later = [torch.cat((x[:13], -x[13:])) for x in (query, key, value)]
    return torch.allclose(attention(*later, 4, 3)[:13], attention(query, key, value, 4, 3)[:13])


@mutant("6.1.8", "the LOWEST")
def all_blocks_chosen(attention):
    """With all blocks it must be full attention; who chooses which cannot show."""
    query, key, value = _trial()
    full = _read(query, key, value, torch.ones(24, 24).tril().bool())
    return torch.allclose(attention(query, key, value, 4, 6), full)


@mutant("6.1.8", "whatever their sums")
def constant_values(attention):
    """Weights that sum to one and the right places for values of single keys, no sizes."""
    query, key, value = _trial()
    unit = torch.eye(24, dtype=torch.float64)
    seen, right = (f(query, key, unit, 4, 3) > 0 for f in (attention, _right))
    ones = attention(query, key, torch.ones_like(value), 4, 3)
    return torch.equal(seen, right) and torch.allclose(ones, torch.ones_like(ones))


@mutant("6.1.8", "return True or False")
def a_difference(attention):
    return (attention(*_trial(), 4, 3) - _right(*_trial(), 4, 3)).abs()
