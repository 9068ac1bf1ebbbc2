"""The puzzle of chapter 1.4: a property that exposes five real bugs of decoding from a cache."""

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.exercises.answers import call, require
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.memory.partial_read import PartialRead, empty_read, finish, merge, partial_read

SPLITS = 4


@checker("1.4.9")
def property_that_exposes_decoding_bugs(answer) -> str:
    """A function decode -> bool: True for right decoders, False for five that are wrong."""
    for name, decode in RIGHT_DECODERS.items():
        require(_verdict(answer, decode), f"your property rejects a right decoder: {name}")
    for name, decode in REAL_BUGS.items():
        verdict = _verdict(answer, decode)
        require(not verdict, f"your property accepts a decoder with a bug: {name}")
    return "Two right decoders pass, five real bugs do not."


def _verdict(answer, decode) -> bool:
    def unnamed(query, key, value, lengths):
        return decode(query, key, value, lengths)

    verdict = call(answer, unnamed)
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    require(isinstance(verdict, bool), f"return True or False, got {type(verdict).__name__}")
    return verdict


def _written(key: Tensor, lengths: Tensor) -> Tensor:
    """Which slots of the cache hold a token: (B, 1, 1, M)."""
    return torch.arange(key.shape[-2]) < lengths[:, None, None, None]


def _dense(query, key, value, lengths):
    shape = *query.shape[:-1], key.shape[-2]
    mask = _written(key, lengths).expand(shape)
    return attend(query, key, value, attn_mask=mask, enable_gqa=True)


def _parts(query, key, value, lengths) -> list[PartialRead]:
    """What each split of the cache knows of the answer. A split may be without keys."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    splits = torch.arange(key.shape[-2]).tensor_split(SPLITS)
    written = _written(key, lengths)
    return [
        partial_read(scores[..., split], value[..., split, :], written[..., split])
        for split in splits
    ]


def _in_splits(query, key, value, lengths):
    state = empty_read(query, value.shape[-1])
    for part in _parts(query, key, value, lengths):
        state = merge(state, part)
    return finish(state)


def _begins_at_a_finite_number(query, key, value, lengths):
    highest, total, read = empty_read(query, value.shape[-1])
    state = PartialRead(highest.clamp(min=-5e4), total, read)
    for part in _parts(query, key, value, lengths):
        state = merge(state, part)
    return finish(state)


def _merge_without_care(a: PartialRead, b: PartialRead) -> PartialRead:
    highest = torch.maximum(a.max, b.max)
    scale_a, scale_b = torch.exp(a.max - highest), torch.exp(b.max - highest)
    total = a.total * scale_a + b.total * scale_b
    return PartialRead(highest, total, a.read * scale_a + b.read * scale_b)


def _nan_of_two_empty_splits(query, key, value, lengths):
    first, second, third, fourth = _parts(query, key, value, lengths)
    left, right = _merge_without_care(first, second), _merge_without_care(third, fourth)
    return finish(_merge_without_care(left, right))


def _one_slot_too_many(query, key, value, lengths):
    return _in_splits(query, key, value, lengths + 1)


def _key_heads_tiled(query, key, value, lengths):
    copies = 1, query.shape[1] // key.shape[1], 1, 1
    return _in_splits(query, key.repeat(copies), value.repeat(copies), lengths)


def _wipes_its_neighbor(query, key, value, lengths):
    wiped = (lengths == 0).roll(1)
    return _in_splits(query, key, value, lengths.masked_fill(wiped, 0))


RIGHT_DECODERS = {
    "the dense one": _dense,
    "one that merges splits (compare with a tolerance, not exactly)": _in_splits,
}
# Bugs that were met in the open: flashinfer issue 4450; flashinfer issue 4051; onnxruntime-genai
# pull request 2354; onnx pull request 7274 (there a rule that differs from torch, here a bug,
# because this book shares key heads as torch does); flash-attention issue 2842.
REAL_BUGS = {
    "its running maximum begins at -5e4, and scores below that read zero": (
        _begins_at_a_finite_number
    ),
    "two splits without keys merge to NaN": _nan_of_two_empty_splits,
    "it counts one slot too many and reads a key that was never written": _one_slot_too_many,
    "query head h reads key head h % Hkv where it should read h // (H / Hkv)": _key_heads_tiled,
    "a sequence with an empty cache wipes the sequence beside it": _wipes_its_neighbor,
}


@solution("1.4.9")
def one_key_is_read_as_it_is(decode) -> bool:
    """An empty cache reads zero, a single key is read as it is, whatever its score."""
    value = torch.arange(1.0, 33.0, dtype=torch.float64).view(2, 2, 8, 1)
    key = torch.full((2, 2, 8, 1), -1e5, dtype=torch.float64)
    query = torch.ones(2, 4, 1, 1, dtype=torch.float64)
    read = decode(query, key, value, torch.tensor([0, 1]))
    expected = value[:, :, :1].repeat_interleave(2, 1)
    expected[0] = 0.0
    return torch.allclose(read, expected)


def _reads(decode, lengths, key_heads=2, shift=-1e5, slots=8):
    """What a decoder reads, and what it should read, on one random example."""
    generator = torch.Generator().manual_seed(149)
    batch = len(lengths)
    shapes = ((batch, 4, 1, 4), (batch, key_heads, slots, 4), (batch, key_heads, slots, 3))
    query, key, value = (torch.randn(s, generator=generator).double() for s in shapes)
    query, key = torch.ones_like(query), key + shift / 2
    lengths = torch.tensor(lengths)
    return decode(query, key, value, lengths), _dense(query, key, value, lengths)


@mutant("1.4.9", "rejects a right decoder: the dense one")
def always_false(decode):
    return False


@mutant("1.4.9", "with a tolerance")
def exactly_equal(decode):
    return torch.equal(*_reads(decode, [7, 8], shift=0.0))


@mutant("1.4.9", "scores below that read zero")
def only_small_scores(decode):
    return torch.allclose(*_reads(decode, [0, 1], shift=0.0))


@mutant("1.4.9", "merge to NaN")
def only_long_caches(decode):
    return torch.allclose(*_reads(decode, [7, 8]))


@mutant("1.4.9", "never written")
def short_caches_finite_long_ones_right(decode):
    finite = _reads(decode, [0, 1])[0].isfinite().all().item()
    return finite and torch.allclose(*_reads(decode, [8, 8]))


@mutant("1.4.9", "h % Hkv")
def one_key_head(decode):
    return torch.allclose(*_reads(decode, [0, 1], key_heads=1))


@mutant("1.4.9", "wipes the sequence beside it")
def one_sequence_at_a_time(decode):
    return all(torch.allclose(*_reads(decode, [length])) for length in (0, 1))


@mutant("1.4.9", "return True or False, got Tensor")
def not_a_bool(decode):
    came, right = _reads(decode, [7, 8])
    return came == right


@mutant("1.4.9", "raised AssertionError")
def raises(decode):
    raise AssertionError
