"""Gate one: every kernel against float64, interpreted; and the gate against broken kernels."""

from dataclasses import replace

import pytest
import torch
from attnlib.kernels import gates
from attnlib.kernels.proof import KERNELS, Case, all_proofs

CPU = torch.device("cpu")
DECIDING = (torch.float64, torch.float32)
GUARDED = (torch.float16, torch.bfloat16)
PROOF = all_proofs()["masked_softmax"]


def every_case(dtypes):
    return [
        pytest.param(proof, case, dtype, id=f"{name}-{case.name}-{dtype}")
        for name, proof in all_proofs().items()
        for dtype in dtypes
        for case in proof.cases(dtype, CPU)
    ]


@pytest.mark.parametrize("proof, case, dtype", every_case(DECIDING))
def test_kernel_and_gradients_equal_the_float64_reference(proof, case, dtype):
    gates.check_close(proof, case, gates.tolerance_of(dtype))


@pytest.mark.parametrize("proof, case, dtype", every_case(GUARDED))
def test_low_precision_stays_within_its_tolerance_and_twice_plain_torch(proof, case, dtype):
    gates.check_close(proof, case, gates.tolerance_of(dtype))
    gates.check_no_worse_than_plain(proof, case)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_proved_at_the_lengths_that_find_bugs(name):
    cases = all_proofs()[name].cases(torch.float64, CPU)
    tensors = [a for case in cases for a in case.arguments if isinstance(a, torch.Tensor)]
    assert {1, 15, 63, 100, 257} <= {size for tensor in tensors for size in tensor.shape}


def forgets_the_last_row(scores, support):
    weights = torch.empty_like(scores)
    weights[:-1] = PROOF.reference(scores, support)[:-1]
    return weights


def sees_one_more_key(scores, support):
    wider = support.clone()
    wider[0, 0] = True
    return PROOF.reference(scores, wider)


def scales_by_a_thousandth_more(scores, support):
    return PROOF.reference(1.001 * scores, support)


def wrong_gradient_only(scores, support):
    right = PROOF.reference(scores, support)
    return right.detach() + 1.01 * (right - right.detach())


def changes_its_input(scores, support):
    weights = PROOF.reference(scores, support)
    scores.data.masked_fill_(~support, 0.0)
    return weights


def answers_in_another_dtype(scores, support):
    return PROOF.reference(scores, support).float()


def loses_an_axis(scores, support):
    return PROOF.reference(scores, support)[..., :-1]


MUTANTS = [
    forgets_the_last_row,
    sees_one_more_key,
    scales_by_a_thousandth_more,
    wrong_gradient_only,
    changes_its_input,
    answers_in_another_dtype,
    loses_an_axis,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_gate_rejects_a_broken_kernel(mutant):
    draw = torch.Generator().manual_seed(3)
    scores = torch.randn(20, 63, generator=draw, dtype=torch.float64, requires_grad=True)
    support = torch.rand(20, 63, generator=draw) < 0.6
    support[0, 0] = False
    case = Case("63 keys", (scores, support))
    gates.check_close(replace(PROOF, kernel=PROOF.reference), case, 1e-12)
    with pytest.raises(gates.GateError):
        gates.check_close(replace(PROOF, kernel=mutant), case, 1e-12)


def test_gate_rejects_a_kernel_that_differs_between_two_runs():
    calls = []

    def drifts(scores, support):
        calls.append(1)
        return PROOF.reference(scores, support) * (1 + 1e-9 * len(calls))

    case = next(PROOF.cases(torch.float64, CPU))
    with pytest.raises(gates.GateError, match="differs between two runs"):
        gates.check_repeats(replace(PROOF, kernel=drifts), case)


def test_gate_rejects_low_precision_worse_than_twice_plain_torch():
    case = list(PROOF.cases(torch.bfloat16, CPU))[6]
    coarse = replace(PROOF, kernel=lambda scores, support: PROOF.reference(scores, support) * 1.02)
    with pytest.raises(gates.GateError, match="at most twice"):
        gates.check_no_worse_than_plain(coarse, case)


def test_error_is_the_rms_ratio_and_the_largest_ratio():
    error = gates.error_of("output", torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    assert error.rms == pytest.approx(0.5 / 5.0)
    assert error.largest == pytest.approx(0.5 / 4.0)


def test_one_bad_element_among_many_is_caught_by_the_largest_ratio():
    exact = torch.ones(10_000)
    actual = exact.clone()
    actual[17] += 1e-4
    error = gates.error_of("output", actual, exact)
    assert error.rms < 5e-6
    assert not error.within(5e-6)


def test_a_zero_reference_asks_for_zero():
    zero = torch.zeros(5, dtype=torch.float64)
    assert gates.error_of("output", torch.zeros(5), zero).within(1e-12)
    assert not gates.error_of("output", torch.full((5,), 1e-5), zero).within(1.0)


def test_outputs_are_poisoned_only_inside_the_gate():
    with gates.poisoned_outputs():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.zeros(3)).isnan().all()
        assert torch.zeros(3).new_empty(2).isnan().all()
        assert (torch.empty(3, dtype=torch.int32) == 2**31 - 1).all()
    assert torch.empty.__module__ != gates.__name__
