"""What `make gpu` does, as far as a machine without a GPU can tell."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attnlib.kernels import benchmark, gpu
from attnlib.kernels import proof as proof_module
from attnlib.kernels.benchmark import Limits
from attnlib.kernels.code_hash import code_of, files_of, kernel_hash, launches_hash
from attnlib.kernels.proof import Case, all_proofs

CPU = torch.device("cpu")
SCRIPT = Path(gpu.__file__)
LIMITS = Limits(2e6, {"float32": 1e9})  # 2000 bytes and a million operations a millisecond


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
    return gpu.examine(proof, CPU, (torch.float32,), LIMITS, one_millisecond)


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
    known = ", ".join(proof_module.KERNELS)
    assert f"unknown kernel no_such_kernel; there are: {known}" in capsys.readouterr().err


def test_green_kernel_is_timed(capsys):
    entry = examine(SMALL)
    assert entry["gates"] == "green"
    assert [(row["pass"], row["kernel_ms"]) for row in entry["times"]] == [
        ("forward", 1.0),
        ("backward", 1.0),
    ]
    assert entry["source"] == kernel_hash("masked_softmax")
    assert {"date", "gate_dtypes", "gate_seconds", "time_seconds"} <= set(entry)
    said = capsys.readouterr().out
    assert "all gates are green" in said
    assert "plain torch" in said


def test_red_kernel_gets_no_times(capsys):
    wrong = replace(SMALL, kernel=lambda scores, support: 1.1 * scores.softmax(-1))
    entry = examine(wrong)
    assert entry["gates"] == "red"
    assert "times" not in entry
    assert "output 0" in entry["failures"][0]
    assert "no times are reported" in capsys.readouterr().out


def test_kernel_that_crashes_is_red_and_not_a_crash():
    def crashes(scores, support):
        raise RuntimeError("illegal memory access")

    assert "illegal memory access" in examine(replace(SMALL, kernel=crashes))["failures"][0]


NO_ROOM = {"gates": "green", "times": [{"case": "large", "error": "out of memory"}]}
BROKEN = {"gates": "green", "times": [{"case": "large", "error": "RuntimeError: no"}]}


@pytest.mark.parametrize(
    "entry, status",
    [({"gates": "green"}, 0), ({"gates": "red"}, 1), (NO_ROOM, 0), (BROKEN, 1)],
    ids=["green", "red", "no room", "failed while timed"],
)
def test_exit_status_and_file_follow_the_gates(monkeypatch, tmp_path, entry, status):
    monkeypatch.setattr(gpu, "missing_requirement", lambda: None)
    monkeypatch.setattr(gpu, "describe_machine", lambda device: machine())
    monkeypatch.setattr(benchmark, "measure_limits", lambda *arguments: LIMITS)
    monkeypatch.setattr(gpu, "examine", lambda *arguments: entry)
    assert gpu.main(["--kernel", "masked_softmax", "--results", str(tmp_path)]) == status
    stored = json.loads((tmp_path / "nvidia-h200.json").read_text())
    assert stored["kernels"] == {"masked_softmax": entry}
    assert stored["copy_bytes_per_second"] == 2e6
    assert stored["matrix_operations_per_second"] == {"float32": 1e9}


def test_times_may_be_asked_for_in_one_dtype_and_gates_stay(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(gpu, "missing_requirement", lambda: None)
    monkeypatch.setattr(gpu, "describe_machine", lambda device: machine())
    monkeypatch.setattr(benchmark, "measure_limits", lambda *arguments: LIMITS)
    monkeypatch.setattr(
        gpu,
        "examine",
        lambda proof, device, dtypes, *more: (
            asked.append((proof.timed_dtypes, len(dtypes))) or {"gates": "green"}
        ),
    )
    words = ["--kernel", "masked_softmax", "--results", str(tmp_path), "--dtype"]
    assert gpu.main([*words, "float32"]) == 0
    assert asked == [((torch.float32,), 4)]
    with pytest.raises(SystemExit):
        gpu.main([*words, "float8"])


def test_results_are_written_after_each_kernel(monkeypatch, tmp_path):
    def stops_at_the_second(proof, *arguments):
        if proof.name == "second":
            raise KeyboardInterrupt
        return {"gates": "green"}

    proofs = {name: replace(SMALL, name=name) for name in ("first", "second")}
    monkeypatch.setattr(gpu, "missing_requirement", lambda: None)
    monkeypatch.setattr(gpu, "describe_machine", lambda device: machine())
    monkeypatch.setattr(benchmark, "measure_limits", lambda *arguments: LIMITS)
    monkeypatch.setattr(proof_module, "all_proofs", lambda: proofs)
    monkeypatch.setattr(gpu, "examine", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--results", str(tmp_path)])
    assert list(json.loads((tmp_path / "nvidia-h200.json").read_text())["kernels"]) == ["first"]


def machine(**changes):
    return {
        "device": "NVIDIA H200",
        "torch": "2.11.0",
        "triton": "3.6.0",
        "cuda": "12.8",
        "cudnn": 91900,
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
    assert {"device", "capability", "triton", "cuda", "cudnn", "python"} <= set(report)


SOURCE = '''"""Words about the module."""

SIZE = 8  # of a block


def doubled(x):
    """Twice x."""

    return "# no comment" + 2 * x
'''


def test_words_do_not_change_the_hash_of_a_kernel_and_code_does():
    reworded = SOURCE.replace("Words about", "More words about").replace("# of a block", "# keys")
    reworded = reworded.replace("Twice x.", "2 x,\n\n    and no more.").replace("\n\n\n", "\n\n")
    assert reworded != SOURCE
    assert code_of(reworded) == code_of(SOURCE)
    assert code_of(SOURCE.replace("2 * x", "3 * x")) != code_of(SOURCE)
    assert code_of(SOURCE.replace("# no comment", "# a comment")) != code_of(SOURCE)


def test_launches_have_a_hash_of_their_own():
    assert len(kernel_hash("masked_softmax")) == 16
    assert kernel_hash("masked_softmax") != launches_hash("masked_softmax")


def test_code_that_a_kernel_imports_counts_as_part_of_it():
    names = [file.stem for file in files_of("flash_attention")]
    assert names == ["flash_attention", "bands", "tile_choice", "tiles"]
    assert [file.stem for file in files_of("masked_softmax")] == ["masked_softmax", "tiles"]
    assert "grid_windows" in [file.stem for file in files_of("neighborhood_attention")]
