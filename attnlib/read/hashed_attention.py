r"""Hashed attention: tokens that fall into one bucket read one another, bucket by bucket."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize, pad

from attnlib.atlas import Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_count, check_dtype, check_scale, check_tensor
from attnlib.read.spherical_k_means import at_least_single
from attnlib.score.compare import dot_product

Rotations = Float[Tensor, "rounds D half"]


def random_rotations(
    width: int, buckets: int, *, rounds: int = 1, seed: int = 0, dtype: torch.dtype | None = None
) -> Rotations:
    """Normal numbers (rounds, width, buckets / 2): the directions that `hash_buckets` asks.

    Raises ValueError for an odd number of buckets.
    """
    for name, size in (("width", width), ("buckets", buckets), ("rounds", rounds)):
        check_count(name, size, least=1)
    if buckets % 2:
        raise ValueError(f"buckets must be even, a direction and its opposite, got {buckets}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rounds, width, buckets // 2, generator=generator, dtype=torch.float64)
    return drawn.to(dtype or torch.get_default_dtype())


def hash_buckets(
    tokens: Float[Tensor, "*heads N D"], rotations: Rotations
) -> Int[Tensor, "*heads rounds N"]:
    r"""The bucket of each token in each round: which of the directions, or their opposites, is
    nearest.

    .. math:: h(x) = \arg\max\,[x R;\, -x R]

    Tokens at a small angle fall into one bucket more often than tokens at a large one. A token of
    zeros falls into bucket 0.
    Shapes: tokens (..., N, D), rotations (rounds, D, buckets / 2) -> (..., rounds, N).
    Source: Kitaev et al. (2020), section 2; Andoni et al. (2015).
    """
    check_rotations(tokens, rotations)
    turned = tokens[..., None, :, :] @ rotations
    return torch.cat((turned, -turned), dim=-1).argmax(-1)


def sorted_ranks(buckets: Int[Tensor, "*heads N"]) -> Int[Tensor, "*heads N"]:
    """The place of each token once all are sorted by bucket, and by place inside a bucket."""
    return buckets.argsort(dim=-1, stable=True).argsort(-1)


def hashed_pairs(
    buckets: Int[Tensor, "*heads rounds N"], chunk_size: int, is_causal: bool
) -> Bool[Tensor, "*heads N N"]:
    r"""Which pairs meet: in some round the same bucket, and the same chunk or the one before.

    A token sees itself only where it meets no other.
    """
    chunk = sorted_ranks(buckets) // chunk_size
    same = buckets[..., :, None] == buckets[..., None, :]
    back = chunk[..., :, None] - chunk[..., None, :]
    meet = (same & (back >= 0) & (back <= 1)).any(-3)
    if is_causal:
        meet = meet.tril()
    own = torch.eye(buckets.shape[-1], dtype=torch.bool, device=buckets.device)
    others = meet & ~own
    return others | (own & ~others.any(-1, keepdim=True))


def dense_hashed_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    rotations: Rotations,
    chunk_size: int,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """`hashed_attention` as dense attention under the mask of `hashed_pairs`."""
    check_hashed(query, key, value, chunk_size, scale)
    dtype, (query, value, rotations) = query.dtype, at_least_single(query, value, rotations)
    meet = hashed_pairs(hash_buckets(query, rotations), chunk_size, is_causal)
    read = attend(query, normalize(query, dim=-1), value, attn_mask=meet, scale=scale)
    return read.to(dtype)


@mechanism(
    key="kitaev-2020",
    paper="kitaev-2020",
    chapter="6-sparse/content-routing",
    section="hashing",
    step="support",
    idea="random directions put tokens into buckets; sorted by bucket, they are read in chunks",
    equation=r"S_i = \{j : h(q_j) = h(q_i)\},\; h(x) = \arg\max [x R; -x R]",
    cost="time R N (G D + 2 C (D + E)) for R rounds, G buckets, chunks of C, and R N log N to sort",
    oracle=dense_hashed_attention,
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def hashed_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    rotations: Rotations,
    chunk_size: int,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention to the tokens that share a bucket in some round: queries serve as keys.

    .. math:: o_i = \sum_{j \in S_i} w_{ij} v_j, \qquad
              s_{ij} = q_i \cdot \frac{q_j}{\lVert q_j \rVert}\,\mathrm{scale}, \qquad
              S_i = \bigcup_r \{j : h_r(q_i) = h_r(q_j)\}

    The key that is given is not read. A token sees itself only where it has no other key, since
    its own score is always the largest. In each round tokens are sorted by bucket and cut into
    chunks of `chunk_size`; a token sees its own chunk and the one before, so a bucket that is
    longer than a chunk may lose pairs. With `is_causal` only keys j <= i; where chunks end depends
    on the sizes of all buckets, so later tokens still matter a little.

    The rounds are read one by one and merged by their sums: a pair that meets in n rounds has its
    score lowered by log n in each, so that it counts once.
    Shapes: query, key (..., N, D), value (..., N, E), rotations (rounds, D, buckets / 2).
    Cost: memory R^2 N C for the pairs of all rounds, no table N x N. Finite for scores up to 1e4.
    Raises ValueError for rotations that do not fit and a chunk_size below 1.
    Source: Kitaev et al. (2020), section 2, eqs. 2 to 4, and its appendix on several rounds.
    """
    check_hashed(query, key, value, chunk_size, scale)
    dtype, (query, value, rotations) = query.dtype, at_least_single(query, value, rotations)
    chunk_size = min(chunk_size, max(1, query.shape[-2]))
    buckets = hash_buckets(query, rotations)
    chunks = sorted_ranks(buckets) // chunk_size
    logs, reads = [], []
    for number, order in enumerate(buckets.argsort(dim=-1, stable=True).unbind(-2)):
        places = in_chunks(order, chunk_size)
        near = with_chunk_before(places)
        meet = pairs_that_meet(buckets, chunks, places, near)
        allowed = meet.select(-4, number) & seen_pairs(places, near, is_causal)
        log, read = read_round(query, value, places, near, allowed, meet.sum(-4), scale)
        back = order.argsort(-1)
        logs.append(log.flatten(-2)[..., : query.shape[-2]].gather(-1, back))
        rows = back[..., None].expand(*back.shape, value.shape[-1])
        reads.append(read.flatten(-3, -2)[..., : query.shape[-2], :].gather(-2, rows))
    share = torch.stack(logs).softmax(0)[..., None]
    return (share * torch.stack(reads)).sum(0).to(dtype)


def read_round(
    query: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    places: Int[Tensor, "*heads K C"],
    near: Int[Tensor, "*heads K C2"],
    allowed: Bool[Tensor, "*heads K C C2"],
    times: Int[Tensor, "*heads K C C2"],
    scale: float | None,
) -> tuple[Float[Tensor, "*heads K C"], Float[Tensor, "*heads K C E"]]:
    """What one round reads, chunk by chunk: the log of the sum of exponentials, and the read.

    `times` says in how many rounds a pair meets. A token's own score is far below all others, so
    that it counts only where it is alone.
    """
    shared = normalize(query, dim=-1)
    scores = dot_product(rows_of(query, places), rows_of(shared, near), scale=scale)
    scores = scores - times.clamp(min=1).to(scores.dtype).log()
    lowest = torch.finfo(scores.dtype).min
    own = places[..., :, None] == near[..., None, :]
    scores = scores.masked_fill(own, lowest / 4).masked_fill(~allowed, lowest)
    weights = scores.softmax(-1).masked_fill(~allowed, 0.0)
    return scores.logsumexp(-1), weights @ rows_of(value, near)


def seen_pairs(
    places: Int[Tensor, "*heads K C"], near: Int[Tensor, "*heads K C2"], is_causal: bool
) -> Bool[Tensor, "*heads K C C2"]:
    """Which pairs are two tokens, and with `is_causal` no key is later than its query."""
    ours, theirs = places[..., :, None], near[..., None, :]
    present = (ours >= 0) & (theirs >= 0)
    return present & (ours >= theirs) if is_causal else present


def pairs_that_meet(
    buckets: Tensor, chunks: Tensor, places: Tensor, near: Tensor
) -> Bool[Tensor, "*heads rounds K C C2"]:
    """For each pair of a chunk and in each round, whether the two share a bucket there and lie in
    one chunk or in two neighboring ones."""
    ours, theirs = (numbers_at(buckets, at) for at in (places, near))
    back = numbers_at(chunks, places)[..., :, None] - numbers_at(chunks, near)[..., None, :]
    return (ours[..., :, None] == theirs[..., None, :]) & (back >= 0) & (back <= 1)


def in_chunks(order: Int[Tensor, "*heads N"], size: int) -> Int[Tensor, "*heads K C"]:
    """The sorted places cut into chunks, the last one filled up with -1."""
    return pad(order, (0, -order.shape[-1] % size), value=-1).unflatten(-1, (-1, size))


def with_chunk_before(places: Int[Tensor, "*heads K C"]) -> Int[Tensor, "*heads K C2"]:
    """The places of each chunk after those of the chunk before it; -1 before the first."""
    before = torch.cat((torch.full_like(places[..., :1, :], -1), places[..., :-1, :]), dim=-2)
    return torch.cat((before, places), dim=-1)


def numbers_at(
    numbers: Int[Tensor, "*heads rounds N"], places: Int[Tensor, "*heads K C"]
) -> Int[Tensor, "*heads rounds K C"]:
    """The numbers of every round at the places of the chunks."""
    rows = places.clamp(min=0).flatten(-2)[..., None, :]
    rows = rows.expand(*rows.shape[:-2], numbers.shape[-2], rows.shape[-1])
    return numbers.gather(-1, rows).unflatten(-1, places.shape[-2:])


def rows_of(
    x: Float[Tensor, "*heads N D"], places: Int[Tensor, "*heads K C"]
) -> Float[Tensor, "*heads K C D"]:
    """The rows of x at the places of the chunks."""
    rows = places.clamp(min=0).flatten(-2)[..., None]
    return x.gather(-2, rows.expand(*rows.shape[:-1], x.shape[-1])).unflatten(-2, places.shape[-2:])


def check_hashed(
    query: Tensor, key: Tensor, value: Tensor, chunk_size: int, scale: float | None
) -> None:
    """Check query, key and value of one length, and the size of the chunks."""
    check_attention(query, key, value)
    check_scale(scale)
    check_count("chunk_size", chunk_size, least=1)
    if key.shape != query.shape:
        raise ValueError(
            f"key must have the shape of query {tuple(query.shape)}, for which it stands in, got "
            f"{tuple(key.shape)}"
        )


def check_rotations(tokens: Tensor, rotations: Tensor) -> None:
    """Check that rotations are (rounds, D, buckets / 2) for tokens of width D."""
    check_tensor("rotations", rotations)
    check_dtype("rotations", rotations, tokens)
    shape = tuple(rotations.shape)
    if len(shape) != 3 or shape[1] != tokens.shape[-1] or not all(shape):
        raise ValueError(
            f"rotations must have shape (rounds, {tokens.shape[-1]}, buckets / 2), got {shape}"
        )
