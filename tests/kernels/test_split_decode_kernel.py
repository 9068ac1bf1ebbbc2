"""What the decoding kernel promises beyond closeness: its parts, its filling, clear errors."""

import functools
import importlib
import math

import pytest
import torch
from attnlib.kernels import gates, split_decode
from attnlib.kernels.split_decode_proof import PROOF, reference

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
    ],
)
def test_what_it_cannot_do_is_refused_before_any_launch(tensors, options, kind, message):
    with pytest.raises(kind, match=message):
        split_decode(*tensors, **options)


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
