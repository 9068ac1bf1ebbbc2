"""Decoding in parts reads what causal attention reads, however the cache is cut and filled."""

import functools
import importlib

import pytest
import torch

from attnlib import attend, split_decode
from attnlib.counting import largest_tensor

form = importlib.import_module("attnlib.memory.split_decode")
LENGTHS = (1, 15, 63, 100, 257)
CUDA = torch.device("cuda")


def draw(queries, keys, heads=4, key_heads=4, batch=(2,), value_width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (*batch, heads, queries, 8),
        (*batch, key_heads, keys, 8),
        (*batch, key_heads, keys, value_width),
    )
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def same(got, wanted):
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol=0, atol=1e-12)


def causal(query, key, value, **options):
    """The queries as the last ones of the keys."""
    offset = key.shape[-2] - query.shape[-2]
    return attend(query, key, value, is_causal=True, query_offset=offset, **options)


@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("splits", [None, 1, 3, 100])
def test_the_parts_together_read_what_the_whole_reads(keys, splits):
    for queries in {1, min(5, keys)}:
        inputs = [x.requires_grad_() for x in draw(queries, keys)]
        got, wanted = split_decode(*inputs, splits=splits), causal(*inputs)
        assert same(got, wanted)
        slopes = [torch.autograd.grad(read.square().sum(), inputs) for read in (got, wanted)]
        assert all(same(a, b) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize("keys", [65, 100])
def test_cut_into_parts_of_a_fixed_size_unless_told(monkeypatch, keys):
    monkeypatch.setattr(form, "KEYS_IN_A_PART", 32)
    seen = []
    real = form.partial_read

    def spy(scores, *rest):
        seen.append(scores.shape[-1])
        return real(scores, *rest)

    monkeypatch.setattr(form, "partial_read", spy)
    inputs = draw(1, keys)
    assert same(split_decode(*inputs), causal(*inputs))
    assert sum(seen) == keys and max(seen) == 32


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 3])
def test_a_group_reads_its_key_head_together(key_heads, queries):
    inputs = draw(queries, 63, key_heads=key_heads)
    got = split_decode(*inputs, enable_gqa=True, splits=4)
    assert same(got, causal(*inputs, enable_gqa=True))


def test_keys_are_not_repeated_for_their_group():
    keys = 4096
    inputs = draw(1, keys, heads=8, key_heads=1, batch=())

    def run(attention):
        return largest_tensor(lambda: attention(*inputs, enable_gqa=True))

    assert run(functools.partial(split_decode, splits=4)) <= 8 * keys  # a row of scores a head
    assert run(causal) >= 8 * 8 * keys


def test_a_view_of_a_longer_cache_is_not_copied():
    query, key, value = draw(1, 4096, batch=(2,), value_width=8)
    view = key[..., :4000, :], value[..., :4000, :]
    assert same(split_decode(query, *view), causal(query, *view))
    assert largest_tensor(lambda: split_decode(query, *view, splits=4)) < key.numel() / 4


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
def test_leading_dimensions_may_be_any(batch):
    inputs = draw(2, 15, batch=batch)
    assert same(split_decode(*inputs, splits=2), causal(*inputs))


def test_one_head_alone_needs_no_axis():
    query, key, value = (x[0, 0] for x in draw(2, 15))
    assert same(split_decode(query, key, value, splits=2), causal(query, key, value))
    filled = torch.tensor([9])
    got = split_decode(query, key, value, lengths=filled)
    assert same(got, causal(query, key[:9], value[:9]))


@pytest.mark.parametrize("offset", [0, 3, 14, 40])
def test_an_offset_says_where_the_queries_stand(offset):
    inputs = draw(2, 15)
    got = split_decode(*inputs, query_offset=offset, splits=4)
    assert same(got, attend(*inputs, is_causal=True, query_offset=offset))


@pytest.mark.parametrize("options", [{}, {"query_offset": 20}, {"splits": 3}])
def test_each_cache_is_read_as_far_as_it_is_filled(options):
    query, key, value = draw(2, 40, batch=(4,), key_heads=2)
    filled = [40, 2, 0, 23]
    for b, length in enumerate(filled):
        key[b, :, length:] = torch.nan
        value[b, :, length:] = torch.nan
    got = split_decode(query, key, value, lengths=torch.tensor(filled), enable_gqa=True, **options)
    assert not got[2].any()
    for b in (0, 1, 3):
        rows = slice(b, b + 1)
        offset = options.get("query_offset", filled[b] - 2)
        wanted = attend(
            query[rows],
            key[rows, :, : filled[b]],
            value[rows, :, : filled[b]],
            is_causal=True,
            query_offset=offset,
            enable_gqa=True,
        )
        assert same(got[rows], wanted)


def test_lengths_number_the_batch_dimensions_through():
    query, key, value = draw(1, 15, batch=(2, 3))
    filled = torch.tensor([[15, 4, 1], [9, 0, 2]])
    got = split_decode(query, key, value, lengths=filled.flatten())
    for at in ((0, 1), (1, 0)):
        length = filled[at]
        assert same(got[at], causal(query[at], key[at][:, :length], value[at][:, :length]))


def test_queries_before_the_first_key_read_zero():
    query, key, value = draw(5, 3)
    got = split_decode(query, key, value)
    assert not got[..., :2, :].any()
    assert same(got[..., 2:, :], causal(query[..., 2:, :], key, value))
    for queries, keys in ((0, 3), (2, 0), (0, 0)):
        empty = split_decode(*draw(queries, keys))
        assert empty.shape == (2, 4, queries, 5) and not empty.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes_stay_near_the_float64_read_even_for_huge_scores(dtype):
    inputs = [x.to(dtype) for x in draw(2, 100)]
    got = split_decode(*inputs, splits=7)
    wanted = causal(*(x.double() for x in inputs))
    assert got.dtype == dtype
    assert (got - wanted).abs().max() <= 4 * torch.finfo(dtype).eps * wanted.abs().max()
    huge = [120 * inputs[0], 120 * inputs[1], inputs[2]]
    assert split_decode(*huge, splits=7).isfinite().all()


@pytest.mark.parametrize(
    ("options", "kind", "name"),
    [
        ({"splits": 0}, ValueError, "splits"),
        ({"splits": 2.0}, TypeError, "splits"),
        ({"query_offset": -1}, ValueError, "query_offset"),
        ({"scale": 0.0}, ValueError, "scale"),
        ({"lengths": [3, 3]}, TypeError, "lengths must be a torch.Tensor"),
        ({"lengths": torch.tensor([3.0, 3.0])}, TypeError, "lengths must be int32 or int64"),
        ({"lengths": torch.tensor([3])}, ValueError, "one for each batch entry"),
        ({"lengths": torch.tensor([3, 16])}, ValueError, "between 0 and the 15 rows of key"),
        ({"lengths": torch.tensor([3, -1])}, ValueError, "between 0 and the 15 rows of key"),
        ({"lengths": torch.tensor([3, 3], device="meta")}, ValueError, "on the device of query"),
    ],
)
def test_wrong_options_are_refused_by_name(options, kind, name):
    with pytest.raises(kind, match=name):
        split_decode(*draw(1, 15), **options)


def test_key_heads_are_shared_only_where_it_is_asked_for():
    with pytest.raises(ValueError, match="enable_gqa=True"):
        split_decode(*draw(1, 15, key_heads=2))


def wide(query, key, value):
    return query, key, value.repeat(1, 1, 1, 60)


def transposed(query, key, value):
    return query, key.mT.contiguous().mT, value


def with_gradient(query, key, value):
    return query.requires_grad_(), key, value


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (with_gradient, {}, "no backward pass"),
        (wide, {}, "widths from 1 to 256, got D = 8, E = 300"),
        (transposed, {}, "key must have a last stride of 1, got 15"),
        (lambda *tensors: tensors, {"splits": 129}, "at most 128 splits, got 129"),
    ],
)
class TestWhatTheKernelCannotDo:
    def test_auto_runs_pytorch_on_a_gpu(self, monkeypatch, change, options, reason):
        pytest.importorskip("triton")
        on_a_new_chip(monkeypatch)
        inputs = change(*draw(1, 15))
        assert same(split_decode(*inputs, **options), causal(*inputs))

    def test_triton_says_why_not(self, change, options, reason):
        pytest.importorskip("triton")
        with pytest.raises(ValueError, match=reason):
            split_decode(*change(*draw(1, 15)), backend="triton", **options)


def on_a_new_chip(monkeypatch):
    """Take tensors for ones on a chip that can run kernels; the list of calls of the kernel."""
    rule = importlib.import_module("attnlib.backend")
    kernels = importlib.import_module("attnlib.kernels")
    monkeypatch.setattr(rule, "obstacle", lambda device: None)
    real, calls = rule.runs_kernel, []
    monkeypatch.setattr(form, "runs_kernel", lambda name, _, why: real(name, CUDA, why))
    kernel = kernels.split_decode

    def spy(*tensors, **options):
        calls.append(options)
        return kernel(*tensors, **options)

    monkeypatch.setattr(kernels, "split_decode", spy)
    return calls


def test_auto_runs_the_kernel_on_a_gpu_and_reads_the_same(monkeypatch):
    pytest.importorskip("triton")
    inputs, filled = draw(2, 40, key_heads=2), torch.tensor([40, 7])
    wanted = split_decode(*inputs, enable_gqa=True, lengths=filled, scale=0.3)
    calls = on_a_new_chip(monkeypatch)
    got = split_decode(*inputs, enable_gqa=True, lengths=filled, scale=0.3, splits=2)
    assert len(calls) == 1 and same(got, wanted)
    assert same(
        split_decode(*inputs, enable_gqa=True, backend="torch"), causal(*inputs, enable_gqa=True)
    )
    assert len(calls) == 1
