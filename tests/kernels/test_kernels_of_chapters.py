"""The kernels that chapters show are kernels: the compiler takes each for sm_90, without a GPU."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters" / "kernels").glob("*.ipynb"))
REFUSED = {  # and why the page shows it
    "branch_on_block": "asks `if` of a block",
    "shown": "prints inside the interpreter",
}
COMPILE = """
import kernels_of_page as page, sys, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

for name in sys.argv[1:]:
    kernel, types, constants = getattr(page, name), {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if "constexpr" in str(kernel.fn.__annotations__.get(argument, "")):
            types[argument] = "constexpr"
            constants[(place,)] = tl.float32 if argument == "sums" else 32
        elif argument.endswith("_ptr"):
            types[argument] = "*i1" if argument == "hidden_ptr" else "*fp32"
        else:
            types[argument] = "fp32" if argument in ("scale", "factor") else "i32"
    try:
        triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", 90, 32))
        print(name, "compiled")
    except Exception as error:
        print(name, "refused:", str(error.__cause__ or error).replace("\\n", " ")[-200:])
"""


def kernels_of(notebook: Path) -> dict[str, str]:
    """The text of every kernel of a page, holes left out, by name."""
    found = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "exercise" in cell["metadata"].get("tags", []):
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list
            ):
                found[node.name] = "@triton.jit\n" + ast.get_source_segment(source, node)
    return found


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
def test_the_compiler_takes_every_kernel_of_the_page(notebook, tmp_path):
    kernels = kernels_of(notebook)
    assert kernels
    text = "import triton, triton.language as tl\n\n" + "\n\n".join(kernels.values())
    (tmp_path / "kernels_of_page.py").write_text(text + "\n", encoding="utf-8")
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *kernels],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    verdicts = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert verdicts.keys() == kernels.keys()
    refused = {name: words for name, words in verdicts.items() if words != "compiled"}
    assert refused.keys() <= REFUSED.keys(), refused
