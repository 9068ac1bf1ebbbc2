"""The page of the kernels, from results made up here: what was measured, what was not, what is old.

The results come out of the benchmark itself, with a stopwatch of our own instead of a GPU, so that
the page and the script cannot disagree about the form of the file.
"""

import json
from dataclasses import replace

import kernel_results
import kernel_times
import pytest
import torch
from attnlib.kernels import gpu
from attnlib.kernels.benchmark import Limits
from attnlib.kernels.code_hash import launches_hash
from attnlib.kernels.proof import Case, Proof
from bs4 import BeautifulSoup

KERNEL = "masked_softmax"  # any file of the folder: its text is what hashes are of
LIMITS = Limits(1e6, {"bfloat16": 1e5, "float32": 1e4})
NO_HALF = "Expected <half>."


def refuses(x):
    if x.dtype == torch.float32:
        raise RuntimeError(NO_HALF)
    return 2 * x


def cases(dtype, device):
    yield Case("100 numbers", (torch.ones(100, dtype=dtype),))


PROOF = Proof(
    name=KERNEL,
    kernel=lambda x: 2 * x,
    reference=lambda x: x + x,
    cases=cases,
    launches=(),
    timed_cases=cases,
    bytes_moved=lambda x: {"forward": 1000},
    operations=lambda x: {"forward": 200},
    timed_dtypes=(torch.bfloat16, torch.float32),
    peers=lambda case: {"half only": refuses},
)


def measured(proof=PROOF, **changes):
    """A results file as the script writes it. The kernel takes 4 ms, each peer 8 ms."""
    shown = iter([4.0, 8.0, 8.0, 40.0, 80.0])
    entry = gpu.examine(
        proof, torch.device("cpu"), (torch.float32,), LIMITS, lambda run: [run(), next(shown)][1]
    )
    machine = gpu.describe_machine(torch.device("cpu")) | gpu.describe_limits(LIMITS)
    return machine | {"device": "NVIDIA H200", "kernels": {KERNEL: entry | changes}}


LAUNCH = {"chip": 80, "launch": "forward, fp32, sm_80", "shared_limit": 166_912, "error": None}
USED = LAUNCH | {"shared": 41_728, "registers": 60, "spilled": 0}


def page_of(folder, *devices, launches=(USED,), source=None):
    """The page, built from an offline report and these results, as a parsed document."""
    entry = {"source": source or launches_hash(KERNEL), "launches": list(launches)}
    compiled = {"triton": "3.7.1", "kernels": {KERNEL: entry}}
    (folder / "offline.json").write_text(json.dumps(compiled))
    for number, device in enumerate(devices):
        (folder / f"device-{number}.json").write_text(json.dumps(device))
    return BeautifulSoup(kernel_results.page(folder), "html.parser")


def words(element):
    return " ".join(element.get_text(" ").split())


def test_a_kernel_without_results_is_not_yet_measured(tmp_path):
    page = page_of(tmp_path)
    assert "no GPU yet" in words(page.select_one(".kernel-summary tbody tr"))
    section = page.select_one(f"section#{KERNEL}")
    assert "Not yet measured" in words(section)
    assert "softmax over the keys in each row's support" in words(section)
    assert f"kernels/{KERNEL}.py" in words(section)
    assert not page.select(".kernel-bars, .old")


def test_every_kernel_of_the_repository_has_a_section_and_no_made_up_result():
    page = BeautifulSoup(kernel_results.kernel_results(None), "html.parser")
    stored = json.loads((kernel_results.KERNELS / "results" / "offline.json").read_text())
    assert [section["id"] for section in page.select("section.kernel")] == list(stored["kernels"])


def test_bars_are_the_share_of_the_bound(tmp_path):
    page = page_of(tmp_path, measured())
    (panel,) = page.select("table.bars")  # the first dtype, one pass
    assert words(panel.caption) == "100 numbers, forward"
    bars = {words(row.th): row.select_one(".bar span") for row in panel.select("tr")}
    # 200 operations at 1e5 a second are 2 ms: half of the kernel's 4, a quarter of a peer's 8.
    assert bars["this kernel"]["style"] == "width:50.0%"
    assert bars["plain torch"]["style"] == bars["half only"]["style"] == "width:25.0%"
    assert words(panel.select("tr")[0]).endswith("4.00 ms")
    assert "In bfloat16 it reaches 50 % of the bound and is 2.00 times as fast" in words(page)


def test_device_versions_and_roof_are_named(tmp_path):
    page = page_of(tmp_path, measured(date="2026-02-03"))
    assert words(page.h4) == "NVIDIA H200"
    facts = words(page.select_one(".kernel-facts"))
    assert facts.startswith(f"Measured 2026-02-03 with torch {torch.__version__}")
    assert "bfloat16" in facts
    assert "NVIDIA H200" in words(page.select_one(".kernel-summary tbody"))
    assert "Not yet measured" not in words(page)


def test_table_has_all_dtypes_and_the_reason_for_what_is_missing(tmp_path):
    page = page_of(tmp_path, measured())
    first, second = page.select(".kernel-times tbody tr")
    assert [words(cell) for cell in first.select("td")] == [
        *("bfloat16", "forward", "4.00", "0", "0", "2.00", "operations", "50 %", "8.00", "8.00")
    ]
    assert [words(cell) for cell in second.select("td")][-2:] == ["80.0", "no"]
    assert f"half only, float32: RuntimeError: {NO_HALF}" in words(page)


def test_a_change_of_the_code_makes_results_old(tmp_path):
    page = page_of(tmp_path, measured(source="another"))
    assert "an earlier version" in words(page.select_one(".kernel-summary tbody"))
    assert "Its code has changed since" in words(page.select_one(".kernel-state.old"))
    assert not page_of(tmp_path, measured()).select(".old")


def test_red_gates_show_their_messages_and_no_times(tmp_path):
    page = page_of(tmp_path, measured(replace(PROOF, kernel=lambda x: 3 * x)))
    assert "gates red" in words(page.select_one(".kernel-summary tbody"))
    assert "Gates are red" in words(page)
    assert "GateError" in words(page.select_one("section ul"))
    assert not page.select(".kernel-bars, .kernel-times")


def test_a_kernel_that_got_no_time_says_why(tmp_path):
    device = measured(times=[{"case": "large", "dtype": "float32", "error": "out of memory"}])
    page = page_of(tmp_path, device)
    assert "this kernel, float32: out of memory" in words(page)
    assert not page.select(".kernel-bars")


def test_a_peer_without_a_time_has_no_bar(tmp_path):
    device = measured()
    row = device["kernels"][KERNEL]["times"][0]
    row["peers"]["half only"] = {"error": "no"}
    assert "does not run here" in words(page_of(tmp_path, device).select_one("table.bars"))


def test_two_gpus_stand_one_after_the_other(tmp_path):
    page = page_of(tmp_path, measured(), measured() | {"device": "NVIDIA A100"})
    assert [words(head) for head in page.select("h4")] == ["NVIDIA H200", "NVIDIA A100"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, "41 KiB of 163 KiB 60 none 1"),
        ({"shared": 166_913}, "163 KiB of 163 KiB 60 none 1"),
        ({"spilled": 1056}, "41 KiB of 163 KiB 60 1,056 bytes 1"),
        ({"error": "no"}, "0 KiB of 163 KiB 0 none 1, 1 of them refused"),
    ],
)
def test_compiler_report_says_what_a_chip_is_asked_for(tmp_path, change, said):
    page = page_of(tmp_path, launches=[USED | change])
    assert words(page.select_one(".kernel-chips tbody tr")) == f"sm_80 A100 {said}"
    assert len(page.select(".share.over")) == (change.get("shared", 0) > 166_912)


def test_launches_of_several_chips_share_a_row(tmp_path):
    other = USED | {"chip": 90, "launch": "forward, fp32, sm_90", "registers": 70}
    lone = USED | {"launch": "backward", "registers": 80}
    page = page_of(tmp_path, launches=[USED, other, lone])
    rows = [words(row) for row in page.select(".kernel-launches tbody tr")]
    assert rows == ["forward, fp32 60 41 70 41", "backward 80 41 not for this chip"]


@pytest.mark.parametrize(
    "change, said, columns",
    [
        ({}, "Compiled for 1 chip: at most 60 registers, none spilled", "registers KiB"),
        (
            {"spilled": 1056},
            "Compiled for 1 chip: at most 60 registers, up to 1,056 bytes spilled",
            "registers spilled KiB",
        ),
        (
            {"error": "no"},
            "Compiled for 1 chip: at most 0 registers, none spilled, 1 of 1 compilations refused",
            "registers KiB",
        ),
    ],
)
def test_the_fold_says_in_short_what_the_compiler_said(tmp_path, change, said, columns):
    page = page_of(tmp_path, launches=[USED | change])
    assert words(page.select_one("section.kernel summary")) == said
    assert words(page.select("table.kernel-launches thead tr")[1]) == columns


def test_an_old_compiler_report_is_shown_as_old(tmp_path):
    page = page_of(tmp_path, source="another")
    assert "changed since it was compiled" in words(page.select_one(".old"))


@pytest.mark.parametrize(
    "milliseconds, said",
    [(0.0123, "0.012"), (0.5, "0.500"), (1.234, "1.23"), (56.78, "56.8"), (1234.5, "1234")],
)
def test_times_have_three_digits(milliseconds, said):
    assert kernel_times.short(milliseconds) == said
