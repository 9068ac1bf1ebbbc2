"""Predicates as tiles: lists, bit masks, what is shared, what is refused."""

from dataclasses import replace

import pytest
import torch
from attnlib.kernels import TiledSupport, block_lists, tiled_support
from attnlib.kernels.tiled_support import packed_bits

from attnlib import support as supports


def causal(b, h, q_idx, kv_idx):
    return kv_idx <= q_idx


def window(width):
    return lambda b, h, q_idx, kv_idx: q_idx - kv_idx < width


def every_per_head(b, h, q_idx, kv_idx):
    return (q_idx - kv_idx) % (h + 1) == 0


def table(support):
    """Each tile as the docstring draws it: full, partial or skipped."""
    signs = torch.where(support.full, 2, support.partial.long())
    return ["".join(".pF"[sign] for sign in row) for row in signs[0, 0].tolist()]


def test_tiles_of_a_causal_window_by_hand():
    support = tiled_support(causal, window(32), queries=48, keys=48, block_size=16)
    assert table(support) == ["p..", "Fp.", "pFp"]
    counts = support.by_query.counts[0, 0].tolist()
    assert counts == [[0, 1], [1, 2], [1, 3]]
    rows = support.by_query.blocks[0, 0].tolist()
    assert [row[:total] for row, (_, total) in zip(rows, counts, strict=True)] == [
        [0],
        [0, 1],
        [1, 0, 2],  # the full one first
    ]
    assert support.by_query.masks[0, 0, 2, 1:].tolist() == [2, 3]
    assert support.by_key.counts[0, 0].tolist() == [[1, 3], [1, 2], [0, 1]]
    assert support.by_key.blocks[0, 0, 0].tolist() == [1, 0, 2]  # full for query block 1
    assert support.by_key.masks[0, 0, 0, 1:].tolist() == [0, 2]


def test_bits_of_a_mask_by_hand():
    support = tiled_support(causal, window(32), queries=48, keys=48, block_size=16)
    assert support.masks.dtype == torch.int32
    assert support.masks.shape == (4, 1, 16)  # partial tiles, words of a row, rows
    assert support.masks[0, 0, :3].tolist() == [0b1, 0b11, 0b111]
    assert support.masks[2, 0, 0].item() == 0b1111111111111110  # query 32 sees the keys 1 to 32
    wide = tiled_support(causal, queries=64, keys=64, block_size=64)
    assert wide.masks.shape == (1, 2, 64)
    assert wide.masks[0, :, 30].tolist() == [2**31 - 1, 0]
    assert wide.masks[0, :, 31].tolist() == [-1, 0]  # bit 31 is the sign
    assert wide.masks[0, :, 33].tolist() == [-1, 0b11]


def test_every_bit_of_a_word_has_its_place():
    assert packed_bits(torch.eye(40, dtype=torch.bool)[:33]).tolist() == [
        *([1 << bit, 0] for bit in range(31)),
        [-(2**31), 0],
        [0, 1],
    ]


PREDICATES = {
    "causal": (causal,),
    "causal and window": (causal, window(20)),
    "none": (),
    "per head": (every_per_head, causal),
    "per batch entry": (supports.padding(torch.tensor([50, 3])), causal),
    "per both": (every_per_head, supports.padding(torch.tensor([50, 3]))),
    "documents": (supports.document(torch.arange(90) // 33), supports.causal),
    "one row for all": (lambda b, h, q_idx, kv_idx: kv_idx < 33,),
    "nothing": (lambda b, h, q_idx, kv_idx: kv_idx < 0,),
}


@pytest.mark.parametrize("size", [16, 64, 128, (64, 16), (16, 64)], ids=str)
@pytest.mark.parametrize("name", PREDICATES)
def test_tiles_say_what_the_predicates_say(name, size):
    predicates = PREDICATES[name]
    sizes = {"batch": 2, "heads": 3}
    support = tiled_support(*predicates, queries=90, keys=70, block_size=size, **sizes)
    expected = torch.ones(2, 3, 90, 70, dtype=torch.bool)
    for predicate in predicates:
        expected &= supports.dense(predicate, 90, 70, **sizes)
    assert torch.equal(support.dense().expand_as(expected), expected)
    # The lists name each tile once, from both sides, with the same mask.
    both = [
        listed_tiles(support.by_query),
        {(j, i, *m) for i, j, *m in listed_tiles(support.by_key)},
    ]
    assert both[0] == both[1]
    assert len(both[0]) == int((support.full | support.partial).sum())


def listed_tiles(lists):
    """(row, column, mask or None, batch entry, head) of each entry that counts."""
    found = set()
    for b, h, row in torch.cartesian_prod(*map(torch.arange, lists.counts.shape[:3])).tolist():
        full, count = lists.counts[b, h, row].tolist()
        for entry in range(count):
            mask = None if entry < full else lists.masks[b, h, row, entry].item()
            found.add((row, lists.blocks[b, h, row, entry].item(), mask, b, h))
    return found


def test_what_no_predicate_asks_for_is_shared():
    sizes = {"queries": 40, "keys": 40, "batch": 2, "heads": 3, "block_size": 16}
    by_entry = supports.padding(torch.tensor([30, 3]))
    assert tiled_support(causal, window(9), **sizes).lead == (1, 1)
    assert tiled_support(causal, every_per_head, **sizes).lead == (1, 3)
    assert tiled_support(causal, by_entry, **sizes).lead == (2, 1)
    assert tiled_support(by_entry, every_per_head, **sizes).lead == (2, 3)


def test_no_table_of_all_pairs_is_ever_asked_for():
    asked = []

    def watched(b, h, q_idx, kv_idx):
        asked.append(torch.broadcast_shapes(q_idx.shape, kv_idx.shape))
        return kv_idx <= q_idx

    tiled_support(watched, queries=100, keys=70, block_size=(32, 16))
    assert asked == [(32, 70), (32, 70), (32, 70), (4, 70)]


def test_positions_of_queries_begin_at_the_offset():
    support = tiled_support(causal, queries=3, keys=20, query_offset=17, block_size=16)
    assert support.dense()[0, 0].sum(-1).tolist() == [18, 19, 20]


def test_tiles_that_the_edge_cuts_are_never_full():
    support = tiled_support(queries=40, keys=50, block_size=16)
    assert table(support) == ["FFFp", "FFFp", "pppp"]
    assert support.dense().all()


@pytest.mark.parametrize("queries, keys", [(0, 20), (20, 0), (0, 0)])
def test_no_query_or_no_key_is_a_support_without_tiles(queries, keys):
    support = tiled_support(causal, queries=queries, keys=keys, block_size=16)
    assert support.dense().shape == (1, 1, queries, keys)
    assert not len(support.masks)


def test_supports_of_the_library_are_taken_unchanged():
    combined = (supports.sink(2) | supports.window(9)) & supports.causal
    support = tiled_support(combined, queries=50, keys=50, block_size=16)
    assert torch.equal(support.dense(), supports.dense(combined, 50, 50))


SIZES = {"queries": 40, "keys": 40, "block_size": 16}
WRONG = {
    "predicates must be callables.*got int as number 1": ((causal, 3), {}),
    r"predicate causal \(number 0\) must give a bool tensor, got int64": (
        (lambda b, h, q_idx, kv_idx: kv_idx - q_idx,),
        {"name": "causal"},
    ),
    "must give a bool tensor, got bool": ((lambda b, h, q_idx, kv_idx: True,), {}),
    r"must give a shape that broadcasts to \(1, 1, 16, 40\), got \(40, 40\)": (
        (lambda b, h, q_idx, kv_idx: torch.ones(40, 40, dtype=torch.bool),),
        {},
    ),
    r"\(number 1\) must hold for all queries and keys, got a table that is too small": (
        (causal, supports.document(torch.arange(39))),
        {},
    ),
    "must answer on the device of the support, cpu, got meta": (
        (lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx).to("meta"),),
        {},
    ),
    "queries must be an int, got float": ((causal,), {"queries": 4.0}),
    "keys must be at least 0, got -1": ((causal,), {"keys": -1}),
    "batch must be at least 1, got 0": ((causal,), {"batch": 0}),
    "heads must be at least 1, got 0": ((causal,), {"heads": 0}),
    "query_offset must be an int, got bool": ((causal,), {"query_offset": True}),
    "block_size must be 16, 32, 64 or 128.*got 24": ((causal,), {"block_size": 24}),
    "device must be a CUDA device or the CPU, got meta": ((causal,), {"device": "meta"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_named(message):
    predicates, options = WRONG[message]
    if name := options.get("name"):
        predicates[0].__name__ = name
    with pytest.raises((TypeError, ValueError), match=message):
        tiled_support(*predicates, **SIZES | {k: v for k, v in options.items() if k != "name"})


WRONG_PARTS = {
    "full must be a bool tensor, got torch.int64": {"full": torch.zeros(1, 1, 3, 3).long()},
    r"full must have shape \(batch or 1, heads or 1, 3, 3\)": {"full": torch.zeros(3, 3).bool()},
    r"partial must have shape.*got \(1, 2, 3, 3\)": {"partial": torch.zeros(1, 2, 3, 3).bool()},
    "full and partial must not both hold a tile": {"full": torch.ones(1, 1, 3, 3).tril(-1) > 0},
    "partial must be on a CUDA device": {"partial": torch.zeros(1, 1, 3, 3).bool().to("meta")},
    "masks must be an int32 tensor, got torch.int64": {"masks": torch.zeros(5, 1, 16).long()},
    r"masks must be contiguous and have shape \(5, 1, 16\).*got \(4, 1, 16\)": {
        "masks": torch.zeros(4, 1, 16, dtype=torch.int32)
    },
    "masks must be on the device of full": {
        "masks": torch.zeros(5, 1, 16, dtype=torch.int32, device="meta")
    },
    "block_size must be a pair": {"block_size": 16},
    "keys must be an int": {"keys": 40.0},
}


@pytest.mark.parametrize("message", WRONG_PARTS)
def test_wrong_parts_are_named(message):
    right = tiled_support(causal, **SIZES)
    assert table(right) == ["p..", "Fp.", "ppp"]
    with pytest.raises((TypeError, ValueError), match=message):
        replace(right, **WRONG_PARTS[message])


def test_a_full_tile_that_reaches_past_the_last_row_is_refused():
    every = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    for queries, keys in [(40, 48), (48, 40)]:
        with pytest.raises(ValueError, match="full must not hold a tile that reaches past"):
            TiledSupport(
                every, ~every, torch.zeros(0, 1, 16, dtype=torch.int32), queries, keys, (16, 16)
            )


def test_block_lists_of_a_table_without_numbers_are_refused_by_name():
    with pytest.raises(ValueError, match="blocks must be on a CUDA device or the CPU, got meta"):
        block_lists(torch.ones(2, 2, dtype=torch.bool, device="meta"))
