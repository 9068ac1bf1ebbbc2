"""The model that fills gaps sees what its support says, and its runs give every value."""

import pytest
import torch

from attnlib.models.cloze import ClozeModel, global_tokens, run_cloze
from attnlib.tasks.two_documents import TwoDocuments

TASK = TwoDocuments()


def model(which, window=3, layers=1):
    choose = global_tokens(TASK, which)
    return ClozeModel(
        TASK.vocabulary, TASK.people, window=window, choose=choose, width=16, layers=layers
    )


def test_gaps_read_everything_and_everything_reads_gaps():
    tokens, _, is_gap = TASK.batch(3, 0)
    seen = model("gaps").support(tokens)[:, 0]
    place = torch.arange(TASK.length)
    near = (place[:, None] - place).abs() < 3
    assert torch.equal(seen, near | is_gap[:, :, None] | is_gap[:, None, :])
    assert torch.equal(model("none").support(tokens)[0, 0], near)
    others = global_tokens(TASK, "others")(tokens)
    assert torch.equal(others.sum(1), is_gap.sum(1)) and not torch.equal(others, is_gap)


@pytest.mark.parametrize(("which", "reaches"), [("gaps", True), ("none", False)])
def test_a_far_fact_reaches_a_gap_only_through_its_own_row(which, reaches):
    tokens, _, is_gap = TASK.batch(1, 0)
    far = is_gap[0] & (torch.arange(TASK.length) > 26)
    assert far.any()
    changed = tokens.clone()
    changed[0, 0] = TASK.vocabulary - 2  # another word at the start of the first document
    net = model(which, layers=2)
    moved = (net(tokens) - net(changed))[0, far].abs().amax()
    assert bool(moved > 1e-6) == reaches


def test_a_run_gives_accuracy_and_pairs():
    values = run_cloze(which="none", told=True, seed=0, steps=2)
    assert values["pairs"] == TASK.length * 5 - 6
    assert 0 <= values["accuracy"] <= 1


def test_an_unknown_choice_is_named():
    with pytest.raises(ValueError, match="which must be one of"):
        global_tokens(TASK, "all")
