"""Supports drawn as tables, their algebra, and FlexAttention, which takes them unchanged."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attnlib import attend, score, support

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

SUPPORTS = {
    "everything": support.everything,
    "causal": support.causal,
    "window": support.window(3),
    "window two-sided": support.window(2, two_sided=True),
    "sink": support.sink(2),
    "sink and window": support.sink_and_window(1, 2),
    "prefix": support.prefix(3),
    "dilated": support.dilated(3) & support.causal,
    "document": support.document(torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])) & support.causal,
    "document by batch": support.document(torch.tensor([[0] * 4 + [1] * 4, [0] * 2 + [1] * 6])),
    "padding": support.padding(torch.tensor([8, 5])),
    "from mask": support.from_mask(torch.eye(8, dtype=torch.bool).flip(0)),
    "either": support.window(2) | support.dilated(4),
    "not": ~support.window(3),
}
CHANGES = {
    "bias": score.bias(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))),
    "bias by head": score.bias(torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))),
    "alibi": score.alibi(2),
    "relative bias": score.relative_bias(torch.linspace(-1, 1, 10).view(2, 5)),
    "soft cap": score.soft_cap(1.0),
    "both": score.then(score.alibi(2), score.soft_cap(2.0)),
}


def drawing(which, queries=5, keys=5, **options):
    table = support.dense(which, queries, keys, **options)[0, 0]
    return ["".join("x" if seen else "." for seen in row) for row in table]


def test_supports_look_as_their_names_say():
    assert drawing(support.causal, 3, 4) == ["x...", "xx..", "xxx."]
    assert drawing(support.window(2)) == ["x....", "xx...", ".xx..", "..xx.", "...xx"]
    assert drawing(support.window(2, two_sided=True), 3) == ["xx...", "xxx..", ".xxx."]
    assert drawing(support.sink(1), 2) == ["x....", "x...."]
    assert drawing(support.sink_and_window(1, 2)) == ["x....", "xx...", "xxx..", "x.xx.", "x..xx"]
    assert drawing(support.prefix(2), 4) == ["xx...", "xx...", "xxx..", "xxxx."]
    assert drawing(support.dilated(2), 3) == ["x.x.x", ".x.x.", "x.x.x"]
    assert drawing(support.document(torch.tensor([0, 0, 1, 1, 1])), 3) == [
        "xx...",
        "xx...",
        "..xxx",
    ]
    assert drawing(support.padding(torch.tensor([3])), 1) == ["xxx.."]
    assert drawing(support.everything, 1) == ["xxxxx"]


def test_an_offset_moves_the_queries():
    assert drawing(support.causal, 2, 4, query_offset=2) == ["xxx.", "xxxx"]
    assert drawing(support.shifted(support.window(2), 2), 2, 4) == [".xx.", "..xx"]


atoms = st.sampled_from(
    [support.causal, support.window(3), support.sink(2), support.dilated(2), support.prefix(4)]
)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(atoms, atoms, atoms)
def test_supports_obey_the_laws_of_sets(a, b, c):
    def same(left, right):
        return torch.equal(support.dense(left, 7, 6), support.dense(right, 7, 6))

    assert same(a & b, b & a) and same(a | b, b | a)
    assert same((a & b) & c, a & (b & c)) and same((a | b) | c, a | (b | c))
    assert same(~(a & b), ~a | ~b) and same(~~a, a)
    assert same(a & (b | c), (a & b) | (a & c))
    assert same(a & support.everything, a) and same(a | ~a, support.everything)
    assert same(a & b, lambda *at: a(*at) & b(*at))


def test_the_name_of_a_support_tells_how_it_was_made():
    assert repr((support.sink(1) | ~support.window(2)) & support.causal) == (
        "((sink(1) | ~window(2)) & causal)"
    )


def tensors(queries):
    generator = torch.Generator().manual_seed(0)
    lengths = (queries, 8, 8)
    return [torch.randn(2, 2, length, 16, generator=generator) for length in lengths]


@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("offset", [0, 3])
def test_flex_attention_takes_a_support_unchanged(name, offset):
    which, inputs = SUPPORTS[name], tensors(8 - offset)
    mask = create_block_mask(support.shifted(which, offset), 2, 2, 8 - offset, 8, device="cpu")
    got = flex_attention(*inputs, block_mask=mask)
    wanted = attend(*inputs, support=which, query_offset=offset)
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("name", CHANGES)
def test_flex_attention_takes_a_score_change_unchanged(name):
    inputs = tensors(8)
    got = flex_attention(*inputs, score_mod=CHANGES[name])
    wanted = attend(*inputs, score_mod=CHANGES[name])
    assert torch.allclose(got, wanted, atol=1e-5)
    assert not torch.allclose(attend(*inputs), wanted, atol=1e-3)


def test_a_sink_that_lies_in_the_future_is_not_seen():
    seen = support.dense(support.sink_and_window(3, 1), 4, 4)[0, 0]
    assert seen.tolist() == torch.ones(4, 4).tril().bool().tolist()
