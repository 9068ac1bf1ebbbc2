"""Kernel tests run in Triton's interpreter; without Triton they give way to one notice."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

WITHOUT_TRITON = {"test_benchmark.py", "test_without_triton.py"}
if importlib.util.find_spec("triton") is None:
    here = Path(__file__).parent
    collect_ignore = [
        file.name for file in here.glob("test_*.py") if file.name not in WITHOUT_TRITON
    ]
