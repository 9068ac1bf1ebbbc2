"""Kernel tests run in Triton's interpreter; without Triton they give way to one notice."""

import importlib.util
import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = [
        "test_compiler_gate.py",
        "test_flash_attention.py",
        "test_gpu_script.py",
        "test_interpreter_gate.py",
        "test_masked_softmax.py",
        "test_peers_of_kernels.py",
        "test_split_decode_kernel.py",
    ]
