"""The reader of spans: every ablation leaves out what it says, and nothing else."""

import pytest
import torch

from attnlib import bidirectional_attention
from attnlib.models.span_reader import DIRECTIONS, SpanReader
from attnlib.read.bidirectional import flow

WORDS, WIDTH = 30, 8


def reader(directions="both"):
    torch.manual_seed(0)
    return SpanReader(WORDS, width=WIDTH, directions=directions).double()


def states(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (3, 11, WIDTH), (3, 5, WIDTH)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def tokens(batch=3, context=11, question=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(WORDS, (batch, n), generator=generator) for n in (context, question)]


every = pytest.mark.parametrize("directions", DIRECTIONS)


def test_unknown_directions_are_refused_by_name():
    with pytest.raises(ValueError, match=r"directions must be one of .*got 'back'"):
        SpanReader(WORDS, directions="back")


@every
@pytest.mark.parametrize(("context", "question"), [(1, 1), (15, 1), (7, 63)])
def test_each_token_has_a_score_as_start_and_as_end(directions, context, question):
    scores = reader(directions)(*tokens(context=context, question=question))
    assert scores.shape == (3, 2, context)
    if context > 1:
        assert not torch.isclose(scores[:, 0], scores[:, 1]).any()


def test_with_both_reads_the_flow_is_that_of_the_paper():
    model, (context, question) = reader(), states()
    wanted = flow(context, *bidirectional_attention(context, question, model.vector))
    assert torch.equal(model.flow(context, question), wanted)


def test_without_the_read_to_the_question_the_product_with_it_is_left_out():
    model, (context, question) = reader("to_context"), states()
    whole = flow(context, *bidirectional_attention(context, question, model.vector))
    assert torch.equal(model.flow(context, question), whole[..., : 3 * WIDTH])


def test_without_the_read_to_the_context_every_token_reads_the_mean_of_the_question():
    model, (context, question) = reader("to_question"), states()
    _, to_question = bidirectional_attention(context, question, model.vector)
    h, mean, product, rest = model.flow(context, question).split(WIDTH, dim=-1)
    torch.testing.assert_close(mean, (question.sum(1) / 5)[:, None].expand(3, 11, WIDTH))
    assert torch.equal(h, context) and torch.equal(product, context * mean)
    assert torch.equal(rest, context * to_question)


def test_with_neither_read_the_vector_of_the_score_is_not_used():
    model, (context, question) = reader("neither"), states()
    got = model.flow(context, question)
    mean = question.mean(1, keepdim=True).expand(3, 11, WIDTH)
    assert torch.equal(got, torch.cat((context, mean, context * mean), dim=-1))
    assert not got.requires_grad


@every
def test_the_question_reaches_the_answer(directions):
    model, (context, question) = reader(directions), tokens()
    other = (question + 1) % WORDS
    assert not torch.isclose(model(context, question), model(context, other)).all(-1).any()


@every
def test_each_pair_of_texts_is_read_alone(directions):
    model, (context, question) = reader(directions), tokens()
    together = model(context, question)
    for row in range(3):
        alone = model(context[row : row + 1], question[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


@every
def test_every_parameter_in_use_learns(directions):
    model = reader(directions)
    model(*tokens()).square().sum().backward()
    idle = {name for name, x in model.named_parameters() if x.grad is None or not x.grad.any()}
    assert idle == ({"vector"} if directions == "neither" else set())
