"""The package where Triton is missing, where attnlib is missing, and what it may import."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from attnlib.kernels import available, launch

FOLDER = Path(launch.__file__).parent
OTHER_LIBRARIES = {"fla", "flash_sigmoid", "flashinfer", "natten"}  # peers, where installed


def run(program: str) -> str:
    """What a fresh Python prints for this program."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_triton_is_here():
    if not available():
        pytest.skip("Triton is not installed here: the kernel tests do not run")
    assert importlib.util.find_spec("triton") is not None


def test_package_imports_without_triton_and_a_call_names_what_is_missing():
    said = run(
        "import sys; sys.modules['triton'] = None\n"
        "from attnlib import kernels\n"
        "assert not kernels.available()\n"
        "try:\n"
        "    kernels.masked_softmax(None, None)\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "masked_softmax is a Triton kernel and Triton is not installed" in said


def test_folder_loads_without_attnlib_and_its_dependencies():
    said = run(
        f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n"
        "sys.modules.update(dict.fromkeys(('einops', 'jaxtyping', 'matplotlib', 'attnlib')))\n"
        "from standalone import load_folder\n"
        "load_folder()\n"
        "from attnlib.kernels import masked_softmax\n"
        "print(masked_softmax.__module__)\n"
    )
    assert said.strip() in ("attnlib.kernels.masked_softmax", "attnlib.kernels.launch")


def imported(nodes: list[ast.AST]) -> set[str]:
    """The top-level packages that these pieces of a program import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name if name.startswith("attnlib") else name.split(".")[0] for name in found}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_kernels_import_only_torch_triton_and_each_other(file):
    tree = ast.parse(file.read_text())
    allowed = sys.stdlib_module_names | {"torch", "triton", "standalone"}
    if file.stem.endswith("_proof"):  # a peer may be another library, asked for when it is called
        assert not imported(tree.body) & OTHER_LIBRARIES
        allowed |= OTHER_LIBRARIES
    foreign = {
        name
        for name in imported(list(ast.walk(tree)))
        if name not in allowed and not f"{name}.".startswith("attnlib.kernels.")
    }
    assert not foreign
