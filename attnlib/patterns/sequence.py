"""Supports by place on a sequence: the patterns of the sparse transformers of 2019 and 2020.

None of them looks at the tokens. Each combines with `causal`, `window` and the others of
`attnlib.support` by `&`, `|` and `~`.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from attnlib.checks import check_count
from attnlib.support import Support, window


def strided(stride: int) -> Support:
    r"""The last `stride` keys and, further back, every `stride`-th: made for rows of an image.

    .. math:: S_i = \{j \le i : i - j < l\} \cup \{j \le i : (i - j) \bmod l = 0\}

    With l near the root of N a query sees about 2 l keys, and two layers reach every key.
    The paper also gives the two parts to two heads: `window(l + 1)` and `dilated(l) & causal`.
    Source: Child et al. (2019), section 4.3, strided attention.
    """
    check_count("stride", stride, least=1)
    return Support(
        lambda b, h, q_idx, kv_idx: (
            (kv_idx <= q_idx) & ((q_idx - kv_idx < stride) | ((q_idx - kv_idx) % stride == 0))
        ),
        f"strided({stride})",
    )


def fixed(stride: int, summaries: int = 1) -> Support:
    r"""The keys of the query's own block, and the last `summaries` keys of every earlier block.

    .. math:: S_i = \{j \le i : \lfloor j/l \rfloor = \lfloor i/l \rfloor\} \cup
              \{j \le i : j \bmod l \ge l - c\}

    with blocks of l = `stride` keys and c = `summaries`. The same few places sum up a block for
    all later queries. Raises ValueError for more summaries than a block holds.
    Source: Child et al. (2019), section 4.3, fixed attention.
    """
    check_count("stride", stride, least=1)
    check_count("summaries", summaries, least=1)
    if summaries > stride:
        raise ValueError(f"summaries must be at most stride = {stride}, got {summaries}")
    return Support(
        lambda b, h, q_idx, kv_idx: (
            (kv_idx <= q_idx)
            & ((kv_idx // stride == q_idx // stride) | (kv_idx % stride >= stride - summaries))
        ),
        f"fixed({stride}, {summaries})",
    )


def global_and_window(width: int, places: Sequence[int]) -> Support:
    r"""The keys nearer than `width` on both sides; the tokens at `places` see and are seen by all.

    .. math:: S_i = \{j : |i - j| < W \text{ or } i \in P \text{ or } j \in P\}

    A query sees 2 W - 1 keys and |P| more; two layers reach every key through a place of P. The
    paper counts the window whole: its w is 2 (W - 1). `& causal` makes it one-sided; a place at the
    start then has nothing of later keys to pass on.
    Raises ValueError for places that are not different numbers from 0 on.
    Source: Beltagy et al. (2020), section 3.1, "Longformer", sliding window and global attention.
    """
    near = window(width, two_sided=True)
    places = check_places(places)

    def is_global(idx: Tensor) -> Tensor:
        return reduce(torch.logical_or, (idx == place for place in places), idx < 0)

    return Support(
        lambda b, h, q_idx, kv_idx: (
            near(b, h, q_idx, kv_idx) | is_global(q_idx) | is_global(kv_idx)
        ),
        f"global_and_window({width}, {places})",
    )


def contiguous_blocks(block_size: int) -> Support:
    """The keys of the query's own block of `block_size` places, and nothing else."""
    check_count("block_size", block_size, least=1)
    return Support(
        lambda b, h, q_idx, kv_idx: q_idx // block_size == kv_idx // block_size,
        f"contiguous_blocks({block_size})",
    )


def random_blocks(blocks: int, block_size: int, *, count: int, seed: int) -> Support:
    r"""For each block of queries `count` different blocks of keys, drawn once from `seed`.

    .. math:: S_i = \{j : \lfloor j/C \rfloor \in R_{\lfloor i/C \rfloor}\}

    There are `blocks` blocks of C = `block_size` places; queries and keys beyond them are an
    error. BigBird is the union with a window and global tokens:
    `random_blocks(...) | global_and_window(...)`.
    Raises ValueError for a count above the number of blocks.
    Source: Zaheer et al. (2020), section 2, random attention, and its block form in appendix D.
    """
    check_count("blocks", blocks, least=1)
    check_count("block_size", block_size, least=1)
    check_count("count", count, least=1)
    if count > blocks:
        raise ValueError(f"count must be at most the number of blocks {blocks}, got {count}")
    check_count("seed", seed)
    table = random_table(blocks, count, seed)
    return Support(
        lambda b, h, q_idx, kv_idx: table.to(q_idx.device)[
            q_idx // block_size, kv_idx // block_size
        ],
        f"random_blocks({blocks}, {block_size}, count={count}, seed={seed})",
    )


def random_table(rows: int, count: int, seed: int) -> Tensor:
    """A bool table (rows, rows) with `count` entries True in each row."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, rows, generator=generator).argsort(-1)[:, :count]
    return torch.zeros(rows, rows, dtype=torch.bool).scatter(-1, chosen, True)


def check_places(places: Sequence[int]) -> list[int]:
    """The places as a list, once it is sure that they are different numbers from 0 on."""
    if isinstance(places, Tensor | str) or not isinstance(places, Sequence | range):
        raise TypeError(f"places must be a sequence of ints, got {type(places).__name__}")
    for place in places:
        check_count("places", place)
    if len(set(places)) != len(places):
        raise ValueError(f"places must be different, got {list(places)}")
    return list(places)
