"""What `make gpu` does, as far as a machine without a GPU can tell."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attnlib.kernels import gpu
from attnlib.kernels.benchmark import copy_bandwidth
from attnlib.kernels.proof import Case, all_proofs

CPU = torch.device("cpu")
SCRIPT = Path(gpu.__file__)


def one_millisecond(run):
    """A stopwatch that runs what it times once and always shows one millisecond."""
    run()
    return 1.0


def small_cases(dtype, device):
    scores = torch.randn(2, 15, dtype=dtype, device=device, requires_grad=True)
    yield Case("15 keys", (scores, torch.ones(15, dtype=torch.bool, device=device)))


SMALL = replace(
    all_proofs()["masked_softmax"],
    cases=small_cases,
    timed_cases=small_cases,
    timed_dtypes=(torch.float32,),
)


def examine(proof):
    return gpu.examine({proof.name: proof}, CPU, (torch.float32,), one_millisecond, 1000)


def test_without_a_gpu_the_script_says_so_and_fails(tmp_path):
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--results", str(tmp_path)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "needs a CUDA device, and torch sees none here" in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package, old", [("torch", "2.10.1+cu128"), ("triton", "3.5.0")])
def test_old_versions_are_named(monkeypatch, package, old):
    monkeypatch.setattr(sys.modules[package], "__version__", old)
    assert f"this is {package} {old}" in gpu.missing_requirement()


def test_an_unknown_kernel_is_refused_with_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "missing_requirement", lambda: None)
    with pytest.raises(SystemExit):
        gpu.main(["--kernel", "no_such_kernel"])
    assert "unknown kernel no_such_kernel; there are: masked_softmax" in capsys.readouterr().err


def test_copy_bandwidth_counts_a_read_and_a_write():
    assert copy_bandwidth(CPU, one_millisecond, size=500) == pytest.approx(1e6)


def test_green_kernel_is_timed_beside_torch_and_the_bound(capsys):
    report = examine(SMALL)
    entry = report["kernels"]["masked_softmax"]
    assert entry["gates"] == "green"
    forward, backward = entry["times"]
    assert (forward["pass"], forward["dtype"]) == ("forward", "float32")
    assert forward["shapes"] == [[2, 15], [15]]
    assert forward["bytes"] == 2 * 30 * 4 + 15
    assert backward["bytes"] == 3 * 30 * 4
    # 2000 bytes a millisecond were copied, so 255 bytes take 0.1275 ms.
    assert forward["bound_ms"] == pytest.approx(0.1275)
    assert forward["times_the_bound"] == pytest.approx(1 / 0.1275)
    assert "all gates are green" in capsys.readouterr().out


def test_red_kernel_gets_no_times(capsys):
    wrong = replace(SMALL, kernel=lambda scores, support: 1.1 * scores.softmax(-1))
    entry = examine(wrong)["kernels"]["masked_softmax"]
    assert entry["gates"] == "red"
    assert "times" not in entry
    assert "output 0" in entry["failures"][0]
    assert "no times are reported" in capsys.readouterr().out


def test_kernel_that_crashes_is_red_and_not_a_crash():
    def crashes(scores, support):
        raise RuntimeError("illegal memory access")

    entry = examine(replace(SMALL, kernel=crashes))["kernels"]["masked_softmax"]
    assert "illegal memory access" in entry["failures"][0]


@pytest.mark.parametrize("gates, status", [("green", 0), ("red", 1)])
def test_exit_status_and_file_follow_the_gates(monkeypatch, tmp_path, gates, status):
    report = machine() | {"kernels": {"masked_softmax": {"gates": gates}}}
    monkeypatch.setattr(gpu, "missing_requirement", lambda: None)
    monkeypatch.setattr(gpu, "examine", lambda *arguments: report)
    assert gpu.main(["--results", str(tmp_path)]) == status
    assert json.loads((tmp_path / "nvidia-h200.json").read_text()) == report


def machine(**changes):
    return {
        "device": "NVIDIA H200",
        "torch": "2.11.0",
        "triton": "3.6.0",
        "cuda": "12.8",
        "kernels": {},
    } | changes


def test_results_keep_other_kernels_of_the_same_versions_only(tmp_path):
    gpu.write_results(machine(kernels={"a": 1, "b": 1}), tmp_path)
    target = gpu.write_results(machine(kernels={"b": 2}), tmp_path)
    assert json.loads(target.read_text())["kernels"] == {"a": 1, "b": 2}
    gpu.write_results(machine(torch="2.13.0", kernels={"b": 3}), tmp_path)
    assert json.loads(target.read_text())["kernels"] == {"b": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["nvidia-h200.json"]


def test_report_names_device_and_versions():
    report = gpu.describe_machine(CPU)
    assert report["torch"] == torch.__version__
    assert {"device", "capability", "triton", "cuda", "python"} <= set(report)
