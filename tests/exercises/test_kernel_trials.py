"""The trial of a student's kernel: what lies beside a tensor is watched, and said in words."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from attnlib.exercises import ExerciseError, check
from attnlib.exercises.kernel_trials import GUARD, Guarded

LENGTH, BLOCK = 13, 16


@triton.jit
def writes_its_input(x_ptr, out_ptr, count, block_size: tl.constexpr):
    elements = tl.arange(0, block_size)
    tl.store(x_ptr + elements, 0.0, mask=elements < count)


@triton.jit
def writes_nothing(x_ptr, out_ptr, count, block_size: tl.constexpr):
    elements = tl.arange(0, block_size)
    tl.store(out_ptr + elements, 0.0, mask=elements > count + block_size)


@triton.jit
def stops(x_ptr, out_ptr, count, block_size: tl.constexpr):
    tl.static_assert(block_size < 4, "too large a block")
    tl.store(out_ptr, 0.0)


@triton.jit
def hole(x_ptr, out_ptr, count, block_size: tl.constexpr): ...  # fmt: skip


@triton.jit
def reads_beside(x_ptr, out_ptr, count, block_size: tl.constexpr):
    elements = tl.arange(0, block_size)
    x = tl.load(x_ptr + elements)
    total = tl.max(x, 0)  # a maximum skips NaN: the second guard is for it
    tl.store(out_ptr + elements, total + 0 * x, mask=elements < count)


def plain(x_ptr, out_ptr, count, block_size):
    return None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (writes_its_input, "writes into one of its inputs"),
        (writes_nothing, "wrote nothing"),
        (stops, "your kernel raised AssertionError"),
        (reads_beside, "numbers that lie beside the tensor"),
        (plain, "a kernel has @triton.jit above it"),
        (3, "expected a Triton kernel, got int"),
    ],
)
def test_what_is_wrong_is_said(answer, says):
    with pytest.raises(ExerciseError, match=says):
        check("K.1.1", answer)


def test_a_kernel_with_its_hole_is_not_attempted_yet(capsys):
    check("K.1.1", hole)
    assert capsys.readouterr().out == "Exercise K.1.1: not attempted yet\n"


@triton.jit
def nothing(B: tl.constexpr, E: tl.constexpr):
    pass


@triton.jit
def only_words(state, scores, seen, value):
    """Take in a tile."""


@triton.jit
def ending(state):
    return state[1]


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        ("K.2.3", nothing),
        ("K.2.3", (nothing,)),
        ("K.2.4", (nothing, only_words)),
        ("K.2.5", [nothing, only_words, nothing]),
        ("K.2.6", nothing),
    ],
)
def test_functions_with_nothing_in_them_are_not_attempted_yet(number, answer, capsys):
    check(number, answer)
    assert capsys.readouterr().out == f"Exercise {number}: not attempted yet\n"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((nothing, only_words, ending), "not written yet: begin, fold"),
        ((nothing, ending), r"expected 3 function\(s\), begin, fold, finish; got 2"),
        ((plain, nothing, nothing), "this is a plain function; a begin has @triton.jit above it"),
        ((nothing, 3, nothing), "expected a Triton function for fold, got int"),
    ],
)
def test_what_is_wrong_with_functions_is_said(answer, says):
    with pytest.raises(ExerciseError, match=says):
        check("K.2.5", answer)


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
@pytest.mark.parametrize("gap", [0, 2])
def test_a_guarded_tensor_holds_the_numbers_and_sees_every_change(shape, gap):
    inside = torch.arange(1.0, 1 + torch.tensor(shape).prod().item()).view(shape)
    guarded = Guarded(inside, float("nan"), gap if len(shape) > 1 else 0)
    assert torch.equal(guarded.tensor, inside)
    assert int((~guarded.outside).sum()) == inside.numel()
    assert not guarded.changed().any()
    guarded.tensor[0] = 9.0
    assert not (guarded.changed() & guarded.outside).any()
    for place in (GUARD - 1, guarded.stop):
        guarded.buffer[place] = 0.0
        assert guarded.changed()[place] and guarded.outside[place]
