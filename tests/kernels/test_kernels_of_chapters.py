"""The kernels that chapters show are kernels: the compiler takes each for sm_90, without a GPU."""

import ast
import json
import os
import re
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

numbers = sys.argv[1]
constant = {"sums": tl.float32}  # all others are sizes
for part, name in (("support", "causal"), ("weight", "softmax")):
    constant[part] = getattr(page, name, None)
pointer = {"hidden_ptr": "*i1", "list_ptr": "*i32"}
scalar = {"scale": "fp32", "factor": "fp32", "log_decay": "fp32"}
for name in sys.argv[2:]:
    kernel, types, constants = getattr(page, name), {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if "constexpr" in str(kernel.fn.__annotations__.get(argument, "")):
            types[argument] = "constexpr"
            constants[(place,)] = constant.get(argument, 32)
        elif argument.endswith("_ptr"):
            types[argument] = pointer.get(argument, numbers)
        else:
            types[argument] = scalar.get(argument, "i32")
    try:
        triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", 90, 32))
        print(name, "compiled")
    except Exception as error:
        print(name, "refused:", str(error.__cause__ or error).replace("\\n", " ")[-200:])
"""


def program_of(notebook: Path) -> list[ast.stmt]:
    """What a page defines for its kernels: functions of Triton, what they import, their parts."""
    found = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code" or "exercise" in cell["metadata"].get("tags", []):
            continue
        for node in ast.parse("".join(cell["source"])).body:
            match node:
                case ast.FunctionDef(decorator_list=[decorator]):
                    wanted = ast.unparse(decorator) == "triton.jit"
                case ast.ImportFrom(module="attnlib.kernels.tiles" | "typing"):
                    wanted = True
                case ast.ClassDef(bases=[ast.Name(id="NamedTuple")]):
                    wanted = True
                case ast.Assign(value=ast.Call(func=ast.Name(id="Support" | "Weight"))):
                    wanted = True
                case _:
                    wanted = False
            found += [node] * wanted
    return found


def launched(program: list[ast.stmt]) -> list[str]:
    """The names of those functions that are launched: they take pointers and write."""
    return list(
        dict.fromkeys(
            node.name
            for node in program
            if isinstance(node, ast.FunctionDef) and re.search(r"store\w*\(", ast.unparse(node))
        )
    )


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
def test_the_compiler_takes_every_kernel_of_the_page(notebook, tmp_path):
    program = program_of(notebook)
    kernels = launched(program)
    assert kernels
    text = "\n\n".join(ast.unparse(node) for node in program)
    opening = "import triton, triton.language as tl\n\n"
    (tmp_path / "kernels_of_page.py").write_text(opening + text + "\n", encoding="utf-8")
    numbers = "*fp64" if "tl.float64" in text else "*fp32"
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, numbers, *kernels],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    verdicts = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert verdicts.keys() == set(kernels)
    refused = {name: words for name, words in verdicts.items() if words != "compiled"}
    assert refused.keys() <= REFUSED.keys(), refused
