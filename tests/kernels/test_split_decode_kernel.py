"""What the decoding kernel promises beyond closeness: its parts, its caches, clear errors."""

import functools
import importlib
import math

import pytest
import torch
from attnlib.kernels import gates, peers, split_decode
from attnlib.kernels.proof import Case
from attnlib.kernels.split_decode_checks import pages_in_use
from attnlib.kernels.split_decode_proof import PROOF, in_order, paged_case, reference, support_of
from triton.runtime.interpreter import InterpreterBuilder

from attnlib import split_decode as pytorch_form
from attnlib.memory import PartialRead, finish, merge, partial_read

module = importlib.import_module("attnlib.kernels.split_decode")


def draw(queries, keys, heads=2, key_heads=1, batch=2, width=8, value_width=5):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, count, length, size, generator=generator, dtype=torch.float64)
        for count, length, size in (
            (heads, queries, width),
            (key_heads, keys, width),
            (key_heads, keys, value_width),
        )
    ]


def same(got, wanted):
    return torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("splits", [2, 4])
def test_its_parts_and_their_merge_are_those_of_the_pytorch_form(splits):
    keys, queries = 300, 2
    query, key, value = draw(queries, keys)
    block = module.tile(4, 8, 5, query.dtype)["key_block_size"]
    size = math.ceil(math.ceil(keys / block) / splits) * block
    rows = query.reshape(2, 1, 4, 8)  # two heads of two queries read the one key head
    last_seen = torch.arange(keys - queries, keys).repeat(2)[:, None]

    def part(split):
        j = torch.arange(split * size, min((split + 1) * size, keys))
        scores = rows @ key[..., j, :].mT / 8**0.5
        return partial_read(scores, value[..., j, :], j <= last_seen)

    wanted = [part(split) for split in range(math.ceil(keys / size))]
    highest, total, read = module.partial_reads(query, key, value, splits=splits)
    got = [
        PartialRead(*(x.view(2, 1, 4, -1) for x in (highest[:, p], total[:, p], read[:, p])))
        for p in range(splits)
    ]
    for ours, theirs in zip(got, wanted, strict=False):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    for ours in got[len(wanted) :]:  # parts without keys
        assert (ours.max == -torch.inf).all() and not ours.total.any() and not ours.read.any()

    merged = module.merged(highest, total, read, query.dtype)
    assert same(merged.view(2, 1, 4, 5), finish(functools.reduce(merge, wanted)))
    assert same(merged.view(2, 2, 2, 5), pytorch_form(query, key, value, enable_gqa=True))


@pytest.mark.parametrize("query_offset", [None, 160])
def test_rows_beyond_the_filling_are_never_read(query_offset):
    query, key, value = draw(2, 200)
    options = {"lengths": torch.tensor([140, 0]), "query_offset": query_offset}
    for b, length in enumerate(options["lengths"]):
        key[b, :, length:] = torch.nan
        value[b, :, length:] = torch.nan
    got = split_decode(query, key, value, splits=2, **options)
    assert same(got, pytorch_form(query, key, value, enable_gqa=True, **options))
    assert got[0].any() and not got[1].any()


def test_a_token_at_a_time_gives_the_rows_of_causal_attention():
    query, key, value = draw(3, 70)
    got = [
        split_decode(query[..., t : t + 1, :], key[..., : 68 + t, :], value[..., : 68 + t, :])
        for t in range(3)
    ]
    assert same(torch.cat(got, -2), reference(query, key, value, {}))


def in_pages(tensor, page_size, order):
    """Caches (B, H, M, D) as a pool in which page order[b, p] holds page p of sequence b.

    All other pages of the pool are full of NaN.
    """
    shape = order.max() + 2, tensor.shape[1], page_size, tensor.shape[3]
    pool = tensor.new_full(shape, torch.nan)
    pool[order.long()] = tensor.unflatten(2, (-1, page_size)).transpose(1, 2)
    return pool


def table(*rows):
    return torch.tensor(rows, dtype=torch.int32)


def test_sinks_window_and_sink_logit_by_hand():
    query, key = torch.zeros(1, 4, dtype=torch.float64), torch.randn(10, 4, dtype=torch.float64)
    value = torch.arange(10.0, dtype=torch.float64)[:, None]
    got = split_decode(query, key, value, sinks=2, window=3)
    assert same(got, torch.tensor([[(0 + 1 + 7 + 8 + 9) / 5]], dtype=torch.float64))
    sink_logit = torch.tensor([math.log(15)], dtype=torch.float64)  # as heavy as 15 keys of score 0
    got = split_decode(query, key, value, sinks=2, window=3, sink_logit=sink_logit)
    assert same(got, torch.tensor([[25 / 20]], dtype=torch.float64))


NO_OPTIONS = {"query_offset": None, "lengths": None, "sinks": 0, "window": None}
OPTIONS = [
    {"sinks": 4, "window": 100},
    {"window": 1},
    {"sinks": 130, "window": 130, "query_offset": 500},
    {"sinks": 3, "window": 20, "query_offset": 900},
    {"sinks": 4, "window": 100, "lengths": torch.tensor([600, 133])},
    {"lengths": torch.tensor([0, 640]), "query_offset": 254},  # sees to the end of a page
]


@pytest.mark.parametrize("page_size", [None, 16, 128])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_no_query_sees_is_never_read(options, page_size):
    query, key, value = draw(2, 640)
    wanted = reference(query, key, value, options)
    hidden = ~support_of(query, key, options).any(-2, keepdim=True).mT  # (M, 1) or (B, 1, M, 1)
    key, value = (tensor.masked_fill(hidden, torch.nan) for tensor in (key, value))
    if page_size:
        count = 640 // page_size
        pages = torch.randperm(2 * count, generator=torch.Generator().manual_seed(3))
        pages = pages.int().view(2, count)
        key, value = (in_pages(tensor, page_size, pages) for tensor in (key, value))
        used = pages_in_use(query, key, pages, **(NO_OPTIONS | options))
        options = options | {"pages": pages.masked_fill(~used, 2**31 - 1)}
    with gates.poisoned_outputs():
        assert same(split_decode(query, key, value, splits=2, **options), wanted)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pages_in_use_are_those_that_hold_a_seen_key(options):
    for page_size in (16, 32, 128):
        pages = torch.zeros(2, 640 // page_size, dtype=torch.int32)
        for queries in (1, 2, 33):
            query, key = torch.empty(2, 2, queries, 8), torch.empty(1, 1, page_size, 8)
            seen = support_of(query, key, options | {"pages": pages}).any(-2)
            seen = seen.expand(2, 1, 640).reshape(2, -1, page_size).any(-1)
            used = pages_in_use(query, key, pages, **(NO_OPTIONS | options))
            assert torch.equal(used, seen)


def test_no_program_visits_a_block_between_the_sinks_and_the_window():
    block = module.tile(2, 8, 5, torch.float64)["key_block_size"]
    query, key, value = draw(1, 9 * block)
    options = {"sinks": 4, "window": block + 1}  # blocks 0, 7 and 8
    highest, total, _ = module.partial_reads(query, key, value, splits=3, **options)
    assert highest.isfinite().all() and (total > 0).all()  # each part has one of them
    whole, *_ = module.partial_reads(query, key, value, splits=9)
    plain = whole[:, [0, 7, 8]]
    assert (highest <= plain).all() and torch.equal(highest[:, 2], plain[:, 2])


def test_windows_of_several_queries_that_begin_beside_the_edge_of_a_block():
    block = module.tile(2, 8, 5, torch.float64)["key_block_size"]
    query, key, value = draw(3, 4 * block, heads=1, batch=1)
    for window in range(2 * block - 3, 2 * block + 2):
        options = {"sinks": 1, "window": window}
        got = split_decode(query, key, value, splits=1, **options)
        assert same(got, reference(query, key, value, options))


def test_a_window_is_split_into_no_more_parts_than_its_keys_are_worth():
    query, key, value = draw(1, 4000, heads=1, batch=1)
    parts, *_ = module.partial_reads(query, key, value, sinks=4, window=200)
    assert parts.shape[1] == 1


def test_windows_a_token_at_a_time_are_the_rows_of_windowed_attention():
    query, key, value = draw(3, 300)
    options = {"sinks": 2, "window": 60}
    got = [
        split_decode(
            query[..., t : t + 1, :], key[..., : 298 + t, :], value[..., : 298 + t, :], **options
        )
        for t in range(3)
    ]
    assert same(torch.cat(got, -2), split_decode(query, key, value, **options))
    assert same(torch.cat(got, -2), reference(query, key, value, options))


def test_sinks_say_nothing_without_a_window_and_a_wide_window_nothing_at_all():
    inputs = draw(2, 300)
    plain = split_decode(*inputs, splits=2)
    assert torch.equal(split_decode(*inputs, splits=2, sinks=5), plain)
    assert torch.equal(split_decode(*inputs, splits=2, window=300), plain)
    assert torch.equal(split_decode(*inputs, splits=2, window=2**29, sinks=2**29), plain)


@pytest.mark.parametrize("page_size", [16, 32, 64, 128, 256])
def test_pages_in_any_order_give_the_bits_of_the_cache_in_order(page_size):
    query, key, value = draw(2, 512)
    options = {"lengths": torch.tensor([512, 77]), "splits": 2}
    wanted = split_decode(query, key, value, **options)
    count = 512 // page_size
    shuffle = torch.Generator().manual_seed(page_size)
    for order in (torch.arange(2 * count), torch.randperm(2 * count, generator=shuffle) + 3):
        pages = order.int().view(2, count)
        pools = (in_pages(tensor, page_size, pages) for tensor in (key, value))
        assert torch.equal(split_decode(query, *pools, pages=pages, **options), wanted)


def test_one_page_that_two_sequences_share_and_one_token_of_it():
    query, key, value = draw(1, 16)
    key, value = key[:1].expand_as(key), value[:1].expand_as(value)
    pools = [in_pages(tensor[:1], 16, table([0])) for tensor in (key, value)]
    got = split_decode(query, *pools, pages=table([0], [0]))
    assert same(got, reference(query, key, value, {}))
    got = split_decode(query, *pools, pages=table([0], [0]), lengths=torch.tensor([1, 0]))
    assert same(got[0], value[0, :, :1].expand(2, 1, 5)) and not got[1].any()


def test_a_table_and_pools_that_are_views_are_read_where_they_are():
    query, key, value = draw(1, 64)
    pages = table([2, 7, 1, 7], [0, 7, 3, 7])[:, ::2]
    pools = [in_pages(tensor[..., :32, :], 16, pages.clone()) for tensor in (key, value)]
    tokens_first = [pool.transpose(1, 2).contiguous().transpose(1, 2) for pool in pools]
    got = split_decode(query, *tokens_first, pages=pages)
    assert same(got, reference(query, key[..., :32, :], value[..., :32, :], {}))


def test_no_load_leaves_the_tensors(monkeypatch):
    """A block of 128 keys asks for 8 pages of 16, and this table has fewer."""
    query, pool = torch.ones(2, 2, 1, 8), torch.ones(6, 1, 16, 8)
    pages, lengths = table([0, 4, 2], [5, 1, 3]), torch.tensor([48, 17])
    given = query, pool, pages, lengths
    starts = torch.tensor([tensor.data_ptr() for tensor in given])
    stops = starts + torch.tensor([tensor.untyped_storage().nbytes() for tensor in given])
    load, asked = InterpreterBuilder.create_masked_load, []

    def watched(builder, pointers, mask, *more):
        asked.append(torch.from_numpy(pointers.data[mask.data.astype(bool)].astype("int64")))
        return load(builder, pointers, mask, *more)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watched)
    module.partial_reads(query, pool, pool, pages=pages, lengths=lengths, sinks=1, window=20)
    addresses = torch.cat(asked)[:, None]
    assert len(addresses) > 100
    assert ((addresses >= starts) & (addresses < stops)).any(1).all()


@pytest.mark.parametrize("shape", [(0, 1), (2, 0)])
def test_no_sequences_or_no_pages(shape):
    batch, count = shape
    query, pool = torch.ones(batch, 2, 1, 8), torch.ones(0, 1, 16, 8)
    pages = torch.zeros(batch, count, dtype=torch.int32)
    with gates.poisoned_outputs():
        read = split_decode(query, pool, pool, pages=pages)
    assert read.shape == query.shape and not read.any()


def test_a_sink_logit_takes_weight_and_gives_no_value():
    query, key, value = draw(2, 100)
    read = functools.partial(split_decode, query, key, value, splits=2)
    plain = read()
    assert torch.equal(read(sink_logit=torch.full((2,), -torch.inf)), plain)
    huge = torch.tensor([1e4, -1e4])
    assert not read(sink_logit=huge)[:, 0].any()
    assert torch.equal(read(sink_logit=huge)[:, 1], plain[:, 1])
    assert not split_decode(query, key[..., :0, :], value[..., :0, :], sink_logit=huge).any()
    logits = torch.tensor([0.5, -1.25], dtype=torch.bfloat16)  # a dtype of its own
    wanted = reference(query, key, value, {"sink_logit": logits})
    assert same(read(sink_logit=logits), wanted)
    assert same(read(sink_logit=torch.tensor([0.5, 9.0, -1.25, 9.0])[::2]), wanted)


def test_gate_rejects_a_window_that_is_one_key_wider(monkeypatch):
    case = next(
        case for case in PROOF.cases(torch.float64, torch.device("cpu")) if "4 sinks" in case.name
    )
    gates.check_close(PROOF, case, 1e-12)
    whole = module.partial_reads
    wider = {"window": case.arguments[3]["window"] + 1}
    monkeypatch.setattr(
        module, "partial_reads", lambda *inputs, **given: whole(*inputs, **(given | wider))
    )
    with pytest.raises(gates.GateError):
        gates.check_close(PROOF, case, 1e-12)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_no_queries_give_nothing_and_no_keys_give_zero(shape):
    with gates.poisoned_outputs():
        read = split_decode(*draw(*shape))
    assert read.shape == (2, 2, shape[0], 5)
    assert not read.any()


@pytest.mark.parametrize(
    ("programs", "keys", "least", "most"),
    [(8, 32768, 17, 128), (256, 32768, 2, 8), (8, 1, 1, 1), (8, 300, 2, 2), (1000, 10**6, 1, 1)],
)
def test_splits_fill_132_processors_and_are_worth_their_merge(programs, keys, least, most):
    splits = module.splits_to_fill(programs, keys, processors=132)
    assert least <= splits <= most
    assert programs * splits >= 132 or splits == -(-keys // module.LEAST_KEYS_OF_A_PART)


def test_tiles_are_never_smaller_than_a_matrix_unit_takes():
    for dtype in (torch.float64, torch.float32, torch.float16):
        for width in (1, 16, 80, 256):
            choices = module.tile(1, width, width, dtype)
            assert choices["row_block_size"] >= 16 <= choices["key_block_size"]


def test_gate_rejects_a_kernel_that_leaves_out_a_part(monkeypatch):
    whole = module.partial_reads

    def without_the_last(*arguments, **options):
        return tuple(x[:, :-1].contiguous() for x in whole(*arguments, **options))

    case = next(
        case for case in PROOF.cases(torch.float64, torch.device("cpu")) if "257" in case.name
    )
    gates.check_close(PROOF, case, 1e-12)
    monkeypatch.setattr(module, "partial_reads", without_the_last)
    with pytest.raises(gates.GateError):
        gates.check_close(PROOF, case, 1e-12)


QUERY, KEY, VALUE = draw(1, 5)


@pytest.mark.parametrize(
    ("tensors", "options", "kind", "message"),
    [
        ((QUERY.clone().requires_grad_(), KEY, VALUE), {}, ValueError, "query requires a gradient"),
        ((QUERY, KEY, VALUE), {"splits": 0}, ValueError, "splits must be at least 1"),
        ((QUERY, KEY, VALUE), {"splits": 129}, ValueError, "splits must be at most 128"),
        ((QUERY, KEY, VALUE), {"splits": 2.0}, TypeError, "splits must be an int"),
        ((QUERY, KEY, VALUE), {"query_offset": -1}, ValueError, "query_offset"),
        ((QUERY, KEY, VALUE), {"scale": -1.0}, ValueError, "scale must be a positive"),
        ((QUERY, KEY, VALUE), {"lengths": [5, 5]}, TypeError, "lengths must be an int32"),
        ((QUERY, KEY, VALUE), {"lengths": torch.ones(2)}, TypeError, "lengths must be an int32"),
        ((QUERY, KEY, VALUE), {"lengths": torch.tensor([5])}, ValueError, "one for each batch"),
        ((QUERY, KEY, VALUE), {"lengths": torch.tensor([5, 6])}, ValueError, "between 0 and the 5"),
        ((QUERY, KEY, VALUE), {"lengths": torch.tensor([-1, 5])}, ValueError, "between 0 and"),
        ((QUERY, KEY.float(), VALUE), {}, TypeError, "key must have the dtype of query"),
        (
            (QUERY, KEY.mT.contiguous().mT, VALUE),
            {},
            ValueError,
            "key must have a last stride of 1",
        ),
        (draw(1, 5, width=257), {}, ValueError, "a width .* from 1 to 256, got 257"),
        (draw(1, 5, heads=3, key_heads=2), {}, ValueError, "multiple of the heads of key"),
        ((QUERY, KEY.to("meta"), VALUE), {}, ValueError, "on one device"),
        ((QUERY, KEY, VALUE), {"sinks": -1}, ValueError, "sinks must be at least 0, got -1"),
        ((QUERY, KEY, VALUE), {"sinks": 1.5}, TypeError, "sinks must be an int"),
        ((QUERY, KEY, VALUE), {"window": 0}, ValueError, "window must be at least 1, got 0"),
        ((QUERY, KEY, VALUE), {"window": True}, TypeError, "window must be an int"),
        ((QUERY, KEY, VALUE), {"sink_logit": 0.5}, TypeError, "sink_logit must be a torch tensor"),
        ((QUERY, KEY, VALUE), {"sink_logit": torch.ones(3)}, ValueError, r"must have shape \(2,\)"),
        (
            (QUERY, KEY, VALUE),
            {"sink_logit": torch.ones(2, requires_grad=True)},
            ValueError,
            "sink_logit requires a gradient",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_launch(tensors, options, kind, message):
    with pytest.raises(kind, match=message):
        split_decode(*tensors, **options)


POOL = torch.zeros(3, 1, 16, 8, dtype=torch.float64)
PAGES = table([0, 2], [1, -5])


@pytest.mark.parametrize(
    ("tensors", "options", "kind", "message"),
    [
        ((QUERY, POOL, POOL), {}, ValueError, "between 0 and 2 .* got -5 for page 1 of sequence 1"),
        ((QUERY, POOL[:2], POOL[:2]), {}, ValueError, "between 0 and 1 .* got 2 for page 1 of seq"),
        (
            (QUERY, POOL, POOL),
            {"lengths": torch.tensor([32, 17])},
            ValueError,
            "got -5 for page 1 of sequence 1",
        ),
        ((QUERY, POOL, POOL), {"lengths": torch.tensor([33, 1])}, ValueError, "0 and the 32 rows"),
        ((QUERY, POOL, POOL), {"lengths": torch.tensor([32])}, ValueError, "one for each batch"),
        ((QUERY, POOL, POOL), {"pages": PAGES.long()}, TypeError, "pages must be an int32 tensor"),
        ((QUERY, POOL, POOL), {"pages": [[0, 2]]}, TypeError, "int32 tensor, got list"),
        ((QUERY, POOL, POOL), {"pages": PAGES[:1]}, ValueError, r"pages must have shape \(2, "),
        ((QUERY, POOL, POOL), {"pages": PAGES[0]}, ValueError, "a row for each sequence"),
        ((QUERY, POOL, POOL), {"pages": PAGES.to("meta")}, ValueError, "on one device"),
        ((QUERY[0], POOL, POOL), {}, ValueError, r"query must have shape \(B, H, N, D\)"),
        ((QUERY, POOL[0], POOL), {}, ValueError, r"key must have shape \(P, Hkv, page_size"),
        ((QUERY, POOL, POOL[:2]), {}, ValueError, "as many pages as key, 3 expected, got 2"),
        ((QUERY, POOL[..., :15, :], POOL[..., :15, :]), {}, ValueError, "rows, got 15"),
        ((QUERY, POOL, POOL[..., :8, :]), {}, ValueError, "value must have one row for each key"),
        ((QUERY, POOL.float(), POOL), {}, TypeError, "key must have the dtype of query"),
        ((QUERY, None, POOL), {}, TypeError, "key must be a torch tensor"),
        ((QUERY[..., :7], POOL, POOL), {}, ValueError, "key must have the width of query"),
        (
            (QUERY, POOL.repeat(1, 3, 1, 1), POOL.repeat(1, 3, 1, 1)),
            {},
            ValueError,
            "multiple of the heads of key",
        ),
    ],
)
def test_pages_that_do_not_fit_are_refused_before_any_launch(tensors, options, kind, message):
    with pytest.raises(kind, match=message):
        split_decode(*tensors, **({"pages": PAGES} | options))


def test_a_gradient_that_nobody_records_is_no_obstacle():
    with torch.no_grad():
        read = split_decode(QUERY.clone().requires_grad_(), KEY, VALUE)
    assert same(read, reference(QUERY, KEY, VALUE, {}))


def test_bytes_and_operations_of_the_step_of_the_roofline():
    shapes = (32, 32, 1, 128), (32, 8, 32768, 128), (32, 8, 32768, 128)
    tensors = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
    moved, operations = (f(*tensors, {})["forward"] for f in (PROOF.bytes_moved, PROOF.operations))
    assert moved == pytest.approx(4.29e9, rel=2e-3)
    assert operations == pytest.approx(1.72e10, rel=2e-3)
    assert operations / moved == pytest.approx(4, rel=1e-3)  # the heads of a group


def test_bytes_and_operations_count_what_is_seen():
    shapes = (1, 32, 1, 128), (1, 8, 131072, 128), (1, 8, 131072, 128)
    tensors = [torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes]
    options = {"sinks": 4, "window": 1024}
    counts = PROOF.bytes_moved, PROOF.operations
    moved, operations = (count(*tensors, options)["forward"] for count in counts)
    assert moved == 2 * (1028 * 8 * 256 + 2 * 32 * 128)
    assert operations == 2 * 1028 * 32 * 256
    case = paged_case(2, 4, 2, 128, 16, 64, torch.float32, torch.device("cpu"))
    query, key, value, options = case.arguments
    in_line = [in_order(pool, options["pages"]) for pool in (key, value)]
    for count in counts:
        assert count(*case.arguments) == count(query, *in_line, {})


@pytest.mark.parametrize("kind", ["window", "pages"])
def test_peers_read_windows_and_pages_as_the_reference_does(kind, monkeypatch):
    monkeypatch.setattr(peers, "flex_peer", lambda *problem: {})  # takes seconds, sees the same
    case = paged_case(2, 4, 2, 128, 16, 64, torch.float32, torch.device("cpu"))
    if kind == "window":
        inputs = [tensor.float() for tensor in draw(2, 128, heads=4, key_heads=2, value_width=8)]
        case = Case(kind, (*inputs, {"sinks": 3, "window": 20}))
    named = PROOF.peers(case)
    peer = named["SDPA, math" if kind == "window" else "SDPA, math, after a copy"]
    exact = reference(*case.arguments)
    torch.testing.assert_close(peer(*case.arguments), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spread", ["expanded", "every second"])
def test_lengths_are_read_by_their_steps(spread):
    query, key = torch.randn(2, 1, 1, 8), torch.randn(2, 1, 40, 8)
    lengths = {
        "expanded": torch.tensor([5]).expand(2),
        "every second": torch.tensor([5, 40, 7, 40])[::2],
    }[spread]
    read = split_decode(query, key, key, lengths=lengths)
    assert torch.equal(read, split_decode(query, key, key, lengths=lengths.clone()))


def test_without_a_query_no_page_is_looked_at():
    pool = torch.randn(3, 2, 16, 8)
    nowhere = torch.full((1, 2), -1, dtype=torch.int32)
    assert split_decode(torch.randn(1, 2, 0, 8), pool, pool, pages=nowhere).shape == (1, 2, 0, 8)


@pytest.mark.parametrize("name", ["query_offset", "sinks", "window"])
@pytest.mark.parametrize("number", [2**31 - 1, 10**400], ids=["int32", "huge"])
def test_positions_that_32_bits_cannot_add_are_refused(name, number):
    x = torch.randn(1, 1, 20, 8)
    with pytest.raises(ValueError, match=f"{name} must be at most"):
        split_decode(x[:, :, :2], x, x, **{name: number})
