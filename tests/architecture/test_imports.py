"""Arrows of the layout run one way: chapters, attnlib, kernels. Core modules stay small."""

import subprocess
import sys

import pytest
from imports import ROOT, wrong_imports

STANDARD = frozenset(sys.stdlib_module_names)
FILES = sorted(p for part in ("attnlib", "kernels") for p in (ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_import_runs_against_an_arrow(file):
    complaints = wrong_imports(file, STANDARD)
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("kernels/x.py", "import numpy"),
        ("kernels/x.py", "import natten"),
        ("kernels/x_proof.py", "import numpy"),
        ("kernels/x.py", "from attnlib import attend"),
        ("kernels/x.py", "def f():\n    import attnlib.score"),
        ("attnlib/score/x.py", "from attnlib import figures"),
        ("attnlib/score/x.py", "from ..models import Decoder"),
        ("attnlib/score/x.py", "from attnlib.tasks.recall import recall"),
        ("attnlib/attend.py", "import scipy"),
        ("attnlib/attend.py", "from kernels import softmax"),
        ("attnlib/__init__.py", "from attnlib.training import train"),
        ("attnlib/tasks/x.py", "import matplotlib.pyplot as plt"),
        ("attnlib/models/x.py", "from chapters import x"),
    ],
)
def test_a_wrong_arrow_is_seen(tmp_path, place, source):
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    assert wrong_imports(file, STANDARD, tmp_path)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("kernels/x.py", "import torch, triton\nfrom attnlib.kernels.tiles import tile"),
        ("kernels/x.py", "from . import tiles"),
        ("kernels/x_proof.py", "def peer():\n    import natten"),
        ("attnlib/score/x.py", "import math\nfrom attnlib.atlas import mechanism"),
        ("attnlib/read/x.py", "from attnlib.kernels import softmax"),
        ("attnlib/figures/x.py", "import matplotlib"),
    ],
)
def test_a_right_arrow_is_allowed(tmp_path, place, source):
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    assert wrong_imports(file, STANDARD, tmp_path) == []


def test_importing_attnlib_brings_no_drawing_no_models_and_no_triton():
    code = (
        "import sys; import torch; before = set(sys.modules); import attnlib; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = ("matplotlib", "ipywidgets", "IPython", "PIL", "sklearn", "triton")
    heavy += tuple(f"attnlib.{part}" for part in ("figures", "models", "tasks", "training"))
    brought = done.stdout.split()
    assert "attnlib" in brought
    assert [m for m in brought if f"{m}.".startswith(tuple(f"{h}." for h in heavy))] == []
