"""The rule that chooses PyTorch or the kernel, and every reason to fall back, without a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from attnlib import backend, flash_attention, split_decode
from attnlib.backend import runs_kernel

CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("meta")


def can():
    return None


def cannot():
    return "the mask is no padding"


def never_asked():
    raise AssertionError("the kernel was asked although the device decides")


@pytest.fixture
def new_chip(monkeypatch):
    """A machine with Triton and a chip on which every tile fits."""
    monkeypatch.setattr(backend, "triton_installed", lambda: True)
    monkeypatch.setattr(backend, "capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "shared_memory", lambda device: 232_448)


@pytest.mark.usefixtures("new_chip")
class TestOnANewChip:
    def test_auto_and_triton_run_the_kernel_and_torch_does_not(self):
        assert runs_kernel("auto", CUDA, can)
        assert runs_kernel("triton", CUDA, can)
        assert not runs_kernel("torch", CUDA, never_asked)

    @pytest.mark.parametrize(
        ("function", "fake", "words"),
        [
            ("capability", (7, 5), "compute capability 7.5"),
            ("shared_memory", 65_536, "has 65536"),
        ],
    )
    def test_an_old_or_small_chip_gets_pytorch_or_a_reason(
        self, monkeypatch, function, fake, words
    ):
        monkeypatch.setattr(backend, function, lambda device: fake)
        assert not runs_kernel("auto", CUDA, never_asked)
        with pytest.raises(ValueError, match=words):
            runs_kernel("triton", CUDA, never_asked)

    def test_capability_eight_is_new_enough(self, monkeypatch):
        monkeypatch.setattr(backend, "capability", lambda device: (8, 0))
        assert runs_kernel("auto", CUDA, can)

    def test_what_the_kernel_cannot_do_gets_pytorch_or_the_reason(self):
        assert not runs_kernel("auto", CUDA, cannot)
        with pytest.raises(ValueError, match="the mask is no padding"):
            runs_kernel("triton", CUDA, cannot)

    def test_without_triton_auto_is_pytorch_and_triton_says_what_is_missing(self, monkeypatch):
        monkeypatch.setattr(backend, "triton_installed", lambda: False)
        assert not runs_kernel("auto", CUDA, never_asked)
        with pytest.raises(ImportError, match="not installed"):
            runs_kernel("triton", CUDA, never_asked)


def test_tiles_fit_the_smallest_chip_they_are_compiled_for():
    pytest.importorskip("triton")
    from attnlib.kernels.offline_compile import SHARED_MEMORY

    assert min(SHARED_MEMORY.values()) == backend.SHARED_MEMORY_OF_TILES


def test_cpu_tensors_run_pytorch_unless_triton_is_asked_for(monkeypatch):
    monkeypatch.setattr(backend, "triton_installed", lambda: True)
    monkeypatch.setattr(backend, "interpreter_obstacle", lambda: None)
    assert not runs_kernel("auto", CPU, never_asked)
    assert runs_kernel("triton", CPU, can)


@pytest.mark.parametrize(("kernels", "own"), [(False, False), (True, False), (False, True)])
def test_half_an_interpreter_is_none(monkeypatch, kernels, own):
    monkeypatch.setattr(backend, "triton_installed", lambda: True)
    monkeypatch.setattr(backend, "interprets_kernels", lambda: kernels)
    monkeypatch.setattr(backend, "interprets_its_own_functions", lambda: own)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 was not set when triton was first"):
        runs_kernel("triton", CPU, never_asked)


def test_another_device_runs_pytorch():
    assert not runs_kernel("auto", OTHER, never_asked)
    with pytest.raises((ValueError, ImportError), match=r"query is on meta|not installed"):
        runs_kernel("triton", OTHER, never_asked)


@pytest.mark.parametrize(
    ("wrong", "near"), [("tritn", "triton"), ("Torch", "torch"), ("automatic", "auto")]
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, near):
    tensors = [torch.ones(1, 4)] * 3
    for attention in (flash_attention, split_decode):
        with pytest.raises(ValueError, match=f"backend must be one of .* Did you mean '{near}'"):
            attention(*tensors, backend=wrong)


# In a process of its own, because it matters what is imported when.
LATE = """
import os, torch, triton
os.environ["TRITON_INTERPRET"] = "1"
from attnlib import flash_attention
try:
    flash_attention(*[torch.ones(3, 4)] * 3, backend="triton")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("program", [LATE, LATE.replace('"1"', '"0"')], ids=["late", "never"])
def test_an_interpreter_that_is_chosen_late_or_never_is_explained(program):
    pytest.importorskip("triton")
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert "TRITON_INTERPRET=1 was not set" in done.stdout, done.stderr
