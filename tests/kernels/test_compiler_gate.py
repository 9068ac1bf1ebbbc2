"""Gate two: every kernel compiles for three chips, fits their shared memory, spills nothing."""

import pytest
from attnlib.kernels.offline_compile import SHARED_MEMORY, compile_all, problem_of
from attnlib.kernels.proof import KERNELS, all_proofs


@pytest.fixture(scope="module")
def reports():
    return compile_all()


def test_every_launch_is_compiled_for_every_chip_it_names(reports):
    expected = {
        (name, launch.name, chip)
        for name in KERNELS
        for launch in all_proofs()[name].launches
        for chip in launch.chips or SHARED_MEMORY
    }
    assert {(r["kernel"], r["launch"], r["chip"]) for r in reports} == expected


def test_every_launch_compiles_fits_and_does_not_spill(reports):
    problems = [
        f"{r['kernel']}, {r['launch']}, sm_{r['chip']}: {problem_of(r)}"
        for r in reports
        if problem_of(r)
    ]
    assert not problems


def test_registers_and_shared_memory_are_reported(reports):
    assert all(0 < report["registers"] <= 255 for report in reports)
    assert any(report["shared"] > 0 for report in reports)


FINE = {"chip": 86, "error": None, "shared": 101_376, "shared_limit": 101_376, "spilled": 0}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"error": "NameError: a global"}, "does not compile: NameError"),
        ({"shared": 101_377}, "needs 101377 bytes of shared memory, over 101376"),
        ({"spilled": 56}, "spills 56 bytes"),
    ],
)
def test_gate_rejects_what_a_chip_cannot_run(change, message):
    assert problem_of(FINE) is None
    assert message in problem_of(FINE | change)
