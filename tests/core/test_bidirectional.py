"""`bidirectional_attention`: two sequences read each other; and the trilinear score it uses."""

import math

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped

from attnlib import bidirectional_attention
from attnlib.read.bidirectional import flow
from attnlib.score import trilinear

E = math.e


def inputs(tokens=5, words=7, lead=(), dtype=torch.float64, width=3):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal(*lead, tokens, width), normal(*lead, words, width), normal(3 * width)


def by_loops(context, question, vector):
    """The equations read aloud: one pair after the other."""
    scores = torch.stack(
        [torch.stack([vector @ torch.cat((h, u, h * u)) for u in question]) for h in context]
    )
    powers = scores.exp()
    to_context = torch.stack([row @ question / row.sum() for row in powers])
    best = powers.max(-1).values
    return to_context, (best @ context / best.sum())[None]


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def close(got, wanted):
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol=1e-11, atol=1e-12)


def all_close(got, wanted):
    return all(close(*pair) for pair in zip(got, wanted, strict=True))


def test_one_token_and_one_word_read_each_other_whole():
    context, question, vector = inputs(1, 1)
    assert all_close(bidirectional_attention(context, question, vector), (question, context))


def test_one_token_reads_two_words_with_scores_ten_and_eleven():
    vector = torch.tensor([5.0, 3.0, -1.0]).double()  # 5 * 2 + 3 u - 2 u = 10 + u
    to_context, to_question = bidirectional_attention(column(2.0), column(0.0, 1.0), vector)
    assert close(to_context, column(E / (1 + E)))
    assert close(to_question, column(2.0))


def test_the_question_reads_tokens_by_their_best_word():
    vector = torch.tensor([0.0, 0.0, 1.0]).double()  # s = h u: best 1 for h = 1, 2 for h = -1
    _, to_question = bidirectional_attention(column(1.0, -1.0), column(1.0, -2.0), vector)
    assert close(to_question, column((E - E**2) / (E + E**2)))


@pytest.mark.parametrize(("tokens", "words"), [(1, 15), (15, 1), (15, 63), (63, 15)])
def test_both_reads_equal_the_sums_over_pairs_at_any_length(tokens, words):
    given = inputs(tokens, words)
    assert all_close(bidirectional_attention(*given), by_loops(*given))


def test_flow_puts_four_vectors_side_by_side():
    context, to_context = torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]])
    got = flow(context, to_context, torch.tensor([[11.0, 13.0]]))
    assert got.tolist() == [[2, 3, 5, 7, 10, 21, 22, 39]]


def test_the_trilinear_score_is_a_product_with_three_vectors_side_by_side():
    context, question, vector = inputs(4, 6, lead=(2,))
    h = context[:, :, None].expand(2, 4, 6, 3)
    u = question[:, None].expand(2, 4, 6, 3)
    wanted = torch.cat((h, u, h * u), dim=-1) @ vector
    assert close(trilinear(vector)(context, question), wanted)
    assert close(trilinear(vector)(context, question, scale=0.5), wanted / 2)


def test_the_part_of_the_token_alone_cancels_in_the_read_to_the_context():
    context, question, vector = inputs()
    changed = vector.clone()
    changed[:3] = torch.tensor([3.0, -2.0, 5.0])
    one, other = (bidirectional_attention(context, question, w) for w in (vector, changed))
    assert close(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 0.1


@pytest.mark.parametrize("part", [slice(3, 6), slice(6, 9)])
def test_the_other_two_parts_do_not_cancel(part):
    context, question, vector = inputs()
    changed = vector.clone()
    changed[part] = 0
    one, other = (bidirectional_attention(context, question, w) for w in (vector, changed))
    assert (one[0] - other[0]).abs().max() > 0.1


def test_absent_words_change_neither_read():
    context, question, vector = inputs()
    real = torch.tensor([True, False, True, True, False, True, True])
    short = bidirectional_attention(context, question[real], vector)
    for absent in (question, 30 * question, -30 * question):
        padded = question.where(real[:, None], absent)
        got = bidirectional_attention(context, padded, vector, question_mask=real)
        assert all_close(got, short)


def test_absent_tokens_change_no_read_of_the_others():
    context, question, vector = inputs()
    real = torch.tensor([True, True, False, True, False])
    short = bidirectional_attention(context[real], question, vector)
    for absent in (context, 30 * context, -30 * context):
        padded = context.where(real[:, None], absent)
        to_context, to_question = bidirectional_attention(
            padded, question, vector, context_mask=real
        )
        assert all_close((to_context[real], to_question), short)


def test_an_empty_question_reads_zero_without_nan_and_leaves_its_neighbor_alone():
    context, question, vector = (x.requires_grad_() for x in inputs(lead=(2,)))
    real = torch.tensor([[False], [True]]).expand(2, 7)
    got = bidirectional_attention(context, question, vector, question_mask=real)
    assert not got[0][0].any()
    assert all_close([read[1] for read in got], by_loops(context[1], question[1], vector))
    grads = torch.autograd.grad(sum(read.square().sum() for read in got), (context, question))
    assert all(torch.isfinite(x).all() for x in (*got, *grads))
    assert not grads[1][0].any()


def test_an_empty_context_is_read_as_zero():
    context, question, vector = inputs()
    nothing = torch.zeros(5, dtype=torch.bool)
    _, to_question = bidirectional_attention(context, question, vector, context_mask=nothing)
    assert to_question.tolist() == [[0, 0, 0]]


def test_an_empty_question_still_leaves_absent_tokens_out():
    context, question, vector = inputs()
    none, real = torch.zeros(7, dtype=torch.bool), torch.tensor([True, True, True, False, False])
    _, padded = bidirectional_attention(
        context, question, vector, question_mask=none, context_mask=real
    )
    _, short = bidirectional_attention(context[:3], question, vector, question_mask=none)
    assert close(padded, short)


def test_a_question_of_length_zero_reads_zero():
    context, question, vector = inputs(words=0)
    to_context, to_question = bidirectional_attention(context, question, vector)
    assert to_context.shape == (5, 3) and not to_context.any()
    assert torch.isfinite(to_question).all()


def test_a_context_of_length_zero_is_read_as_zero():
    context, question, vector = inputs(tokens=0)
    to_context, to_question = bidirectional_attention(context, question, vector)
    assert to_context.shape == (0, 3) and to_question.tolist() == [[0, 0, 0]]
    assert bidirectional_attention(*inputs(lead=(0,))[:2], vector)[1].shape == (0, 1, 3)


@pytest.mark.parametrize("masked", [False, True])
def test_its_gradients_are_right(masked):
    given = [tensor.requires_grad_() for tensor in inputs(4, 3)]
    masks = {}
    if masked:
        masks["question_mask"] = torch.tensor([True, False, True])
        masks["context_mask"] = torch.tensor([True, True, False, True])
    assert torch.autograd.gradcheck(lambda *x: bidirectional_attention(*x, **masks), given)


@pytest.mark.parametrize("lead", [(2,), (2, 3)])
def test_each_pair_of_sequences_is_read_alone(lead):
    context, question, vector = inputs(lead=lead)
    words = torch.rand(*lead, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    tokens = torch.rand(*lead, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    words[..., 0] = tokens[..., 0] = True
    got = bidirectional_attention(
        context, question, vector, question_mask=words, context_mask=tokens
    )
    for place in torch.cartesian_prod(*map(torch.arange, lead)).view(-1, len(lead)).tolist():
        place = tuple(place)
        to_context, to_question = (read[place] for read in got)
        kept = context[place][tokens[place]], question[place][words[place]]
        assert all_close((to_context[tokens[place]], to_question), by_loops(*kept, vector))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_is_kept_and_only_rounding_is_lost(dtype):
    given = inputs(dtype=dtype)
    real = torch.tensor([True, False, True, True, False, True, True])
    got = bidirectional_attention(*given, question_mask=real)
    wanted = bidirectional_attention(*(x.double() for x in given), question_mask=real)
    for read, exact in zip(got, wanted, strict=True):
        assert read.dtype == dtype
        assert (read.double() - exact).abs().max() < 20 * torch.finfo(dtype).eps


def wrong(change):
    context, question, vector = inputs()
    given = {"context": context, "question": question, "vector": vector}
    given.update(change(given))
    return lambda: bidirectional_attention(**given)


def ones(*shape):
    return torch.ones(shape, dtype=torch.bool)


REFUSED = {
    "an integer context": ("context", lambda x: {"context": x["context"].long()}),
    "a context that is a list": ("context", lambda x: {"context": x["context"].tolist()}),
    "an integer question": ("question", lambda x: {"question": x["question"].long()}),
    "a question that is a list": ("question", lambda x: {"question": x["question"].tolist()}),
    "a vector of another width": ("vector", lambda x: {"vector": x["vector"][:8]}),
    "a float question mask": ("question_mask", lambda x: {"question_mask": torch.ones(7)}),
    "a float context mask": ("context_mask", lambda x: {"context_mask": torch.ones(5)}),
    "a question mask for the context": ("question_mask", lambda x: {"question_mask": ones(5)}),
    "a context mask for the question": ("context_mask", lambda x: {"context_mask": ones(7)}),
    "a mask of pairs": ("question_mask", lambda x: {"question_mask": ones(5, 7)}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_refused_by_name(case):
    name, change = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=name):
        wrong(change)()


NOT_NAMED = {
    "a mask that is a list": ("question_mask", lambda x: {"question_mask": [True] * 7}),
    "a vector of another dtype": ("vector", lambda x: {"vector": x["vector"].float()}),
    "a context with one dimension": ("context", lambda x: {"context": x["context"][0]}),
    "a question of another dtype": ("question", lambda x: {"question": x["question"].float()}),
    "a question of another width": ("question", lambda x: {"question": x["question"][:, :2]}),
    "a question with a batch": ("question", lambda x: {"question": x["question"].expand(2, 7, 3)}),
}


@pytest.mark.parametrize("case", NOT_NAMED)
def test_the_error_speaks_of_context_and_question(case):
    name, change = NOT_NAMED[case]
    with pytest.raises((ValueError, TypeError), match=name):
        wrong(change)()


def test_inputs_are_left_as_they_were():
    given = [
        *inputs(),
        torch.tensor([False] * 3 + [True] * 4),
        torch.tensor([True] * 3 + [False] * 2),
    ]
    before = [tensor.clone() for tensor in given]
    reads = bidirectional_attention(*given[:3], question_mask=given[3], context_mask=given[4])
    flow(given[0], *reads)
    assert all(map(torch.equal, given, before))


def test_the_shapes_in_the_signatures_are_true():
    read, join = (jaxtyped(f, typechecker=beartype) for f in (bidirectional_attention, flow))
    for lead in ((), (2,), (2, 3)):
        context, question, vector = inputs(lead=lead)
        masks = {"question_mask": ones(*lead, 7), "context_mask": ones(*lead, 5)}
        reads = read(context, question, vector, **masks)
        assert join(context, *reads).shape == (*lead, 5, 12)
