"""What the checkers of chapter K.2 run a reader's functions against is what the chapter shows."""

import ast
import json
import textwrap
from inspect import getsource
from pathlib import Path

import pytest

pytest.importorskip("triton")

from attnlib.exercises import from_loop_to_kernel_attention as kernel
from attnlib.exercises import from_loop_to_kernel_retention as retention
from attnlib.exercises import from_loop_to_kernel_steps as steps
from attnlib.exercises import from_loop_to_kernel_weight as weight

CHAPTER = Path(__file__).parents[2] / "chapters/kernels/from-loop-to-kernel.ipynb"
PARTS = [
    (kernel, "softmax_begin"),
    (kernel, "softmax_fold"),
    (kernel, "softmax_finish"),
    (kernel, "load_block"),
    (kernel, "attention_kernel"),
    (kernel, "all_bounds"),
    (kernel, "causal_bounds"),
    (kernel, "causal_sees"),
]
SOLUTIONS = [
    (steps, "begin"),
    (steps, "bounds"),
    (steps, "sees"),
    (weight, "begin"),
    (weight, "fold"),
    (weight, "finish"),
    (retention, "inside"),
    (retention, "retention"),
]


def shown() -> set[str]:
    """Every function of the chapter, without decorators and layout."""
    cells = json.loads(CHAPTER.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return {bare(part) for source in sources for part in ast.parse(source).body}


def bare(part: ast.stmt) -> str:
    if isinstance(part, ast.FunctionDef):
        part.decorator_list = []
    return ast.dump(part)


@pytest.mark.skipif(not CHAPTER.exists(), reason="the chapter is not written yet")
@pytest.mark.parametrize(
    "module, name", PARTS + SOLUTIONS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_the_function_is_the_one_of_the_chapter(module, name):
    source = textwrap.dedent(getsource(getattr(module, name).fn))
    assert bare(ast.parse(source).body[0]) in shown()
