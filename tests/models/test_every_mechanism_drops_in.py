"""Every mechanism of the atlas is an operator of the small models, by its name alone."""

from dataclasses import replace

import pytest
import torch

from attnlib.atlas import get, operators
from attnlib.models import DecoderLM, MultiHeadAttention, VisionTransformer, multi_head
from attnlib.tasks import Copy
from attnlib.training import train

CAUSAL = [entry.key for entry in operators() if entry.promises.causal]
ALL = [entry.key for entry in operators()]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_language_model_with_it_trains_and_does_not_see_the_future(name):
    task = Copy(count=4, symbols=6)
    model = DecoderLM(task.vocabulary, width=16, operator=name, position="learned")
    history = train(model, task.batches(16, 0), steps=30, progress=False)
    assert history.loss[-5:].mean() < history.loss[:5].mean()

    tokens = task.batch(2, 1).tokens
    changed = tokens.clone()
    changed[:, 4:] = 0
    torch.testing.assert_close(model(tokens)[:, :4], model(changed)[:, :4])


@pytest.mark.parametrize("name", ALL)
def test_a_vision_model_takes_it(name):
    model = VisionTransformer(8, 4, 3, width=16, operator=name)
    logits = model(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    logits.sum().backward()
    slopes = {name: part.grad for name, part in model.blocks.named_parameters()}
    unused = {"to_query", "to_key"} if name == "uniform" else set()  # it asks nobody anything
    assert {part for part in slopes if slopes[part] is None} == {
        part for part in slopes if unused & set(part.split("."))
    }
    assert all(torch.isfinite(slope).all() for slope in slopes.values() if slope is not None)


def test_the_name_the_entry_and_the_function_are_the_same_operator():
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))

    def read(operator):
        torch.manual_seed(0)
        return MultiHeadAttention(16, 2, operator=operator)(x)

    assert torch.equal(read("softmax"), read(get("softmax")))
    assert torch.equal(read("softmax"), read(get("softmax").function))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'softmax'"):
        DecoderLM(9, operator="softmaxx")


def test_an_operator_that_is_not_linear_in_its_values_has_no_weights_to_return(monkeypatch):
    entry = get("softmax")
    bent = replace(entry, promises=replace(entry.promises, linear_in_values=False))
    monkeypatch.setattr(multi_head, "entry_of", lambda function: bent)
    with pytest.raises(ValueError, match="'softmax' is not linear in its values"):
        MultiHeadAttention(8, 2)(torch.randn(1, 3, 8), return_weights=True)
