"""Gate two: every kernel compiles for three chips, fits their shared memory, spills nothing."""

import json

import pytest
from attnlib.kernels.code_hash import launches_hash
from attnlib.kernels.offline_compile import (
    SHARED_MEMORY,
    STORED,
    compile_all,
    problem_of,
    stored_form,
    table,
    write,
)
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


REPORTS = [
    {"kernel": "masked_softmax", "launch": "forward", "registers": 40} | FINE,
    {"kernel": "masked_softmax", "launch": "backward", "chip": 90, "error": "Fault: no\nmore"},
]


def test_table_has_a_line_for_each_launch():
    head, fine, broken = table(REPORTS).splitlines()
    assert head.split()[:3] == ["kernel", "launch", "chip"]
    assert fine.split() == [
        "masked_softmax",
        "forward",
        "sm_86",
        "101,376",
        "of",
        "101,376",
        "40",
        "0",
    ]
    assert broken.split() == ["masked_softmax", "backward", "sm_90", "Fault:", "no"]


def test_report_is_stored_by_kernel_with_the_hash_of_its_code(tmp_path):
    target = tmp_path / "results" / "offline.json"
    write(REPORTS, target)
    entry = json.loads(target.read_text())["kernels"]["masked_softmax"]
    assert entry["source"] == launches_hash("masked_softmax")
    assert [launch["launch"] for launch in entry["launches"]] == ["forward", "backward"]
    assert list(target.parent.iterdir()) == [target]


RENEW = "run: .venv/bin/python kernels/offline_compile.py --write"


@pytest.mark.parametrize("name", KERNELS)
def test_stored_report_is_of_the_code_that_is_here(name):
    stored = json.loads(STORED.read_text())["kernels"]
    assert name in stored, RENEW
    assert stored[name]["source"] == launches_hash(name), RENEW


def test_stored_report_is_what_the_compiler_says_now(reports):
    stored = json.loads(STORED.read_text())
    now = stored_form(reports)
    if stored["triton"] == now["triton"]:
        assert stored == now, RENEW
