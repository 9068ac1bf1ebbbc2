"""Which keys are seen is found from outside, and a wrong table is named in words."""

import pytest
import torch

from attnlib import attend
from attnlib.exercises import ExerciseError
from attnlib.exercises.seen_keys import require_support, seen_keys


def drawn(queries, keys):
    generator = torch.Generator().manual_seed(8)
    shapes = (2, queries, 4), (2, keys, 4), (2, keys, 3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def causal(queries, keys, offset=0):
    return torch.arange(keys) <= torch.arange(queries)[:, None] + offset


@pytest.mark.parametrize("sizes", [(1, 1), (5, 5), (3, 7), (7, 3)])
@pytest.mark.parametrize("offset", [0, 2])
def test_the_keys_of_causal_attention_are_found(sizes, offset):
    seen = seen_keys(attend, *drawn(*sizes), is_causal=True, query_offset=offset)
    assert seen.equal(causal(*sizes, offset))
    require_support(seen, causal(*sizes, offset))


def test_a_key_under_a_mask_is_not_seen():
    allowed = torch.rand(5, 6, generator=torch.Generator().manual_seed(9)) < 0.5
    assert seen_keys(attend, *drawn(5, 6), attn_mask=allowed).equal(allowed)


def test_a_read_that_is_not_finite_counts_as_another_one():
    def broken(query, key, value):
        return value.mean(-2, keepdim=True).expand(2, 5, 3) / 0

    assert seen_keys(broken, *drawn(5, 6)).all()


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (causal(4, 4, 1), "row 0 sees key 1, which it may not see: the mask is shifted by one"),
        (causal(4, 4, -1), "row 0 does not see key 0, which it may: the mask is shifted by one"),
        (causal(4, 4) | True, "row 0 sees key 1, which it may not see: no mask is applied"),
        (causal(4, 4).mT, "rows and columns of the mask are swapped"),
        (~causal(4, 4), "the mask hides what it should show"),
        (torch.eye(4, dtype=torch.bool), "row 1 does not see key 0, which it may"),
    ],
)
def test_a_wrong_table_is_named_in_words(seen, words):
    with pytest.raises(ExerciseError, match=words):
        require_support(seen, causal(4, 4))


def test_a_mask_aligned_at_the_end_is_named():
    with pytest.raises(ExerciseError, match=r"with 3 rows, row 0 sees key 1, .* its last row"):
        require_support(causal(3, 7, 4), causal(3, 7), "with 3 rows, ")


def test_a_shifted_window_is_named():
    allowed = causal(6, 6) & ~causal(6, 6, -3)
    with pytest.raises(ExerciseError, match="shifted by one"):
        require_support(causal(6, 6, 1) & ~causal(6, 6, -2), allowed)


def test_inputs_need_no_axis_for_sequences_or_heads():
    query, key, value = (tensor[0] for tensor in drawn(3, 4))
    assert seen_keys(attend, query, key, value, is_causal=True).equal(causal(3, 4))
