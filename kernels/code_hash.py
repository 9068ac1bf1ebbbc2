"""Which text of a kernel was measured: a hash that changes when its code does.

Comments, docstrings and blank lines do not count, so a corrected word makes no measurement old.
This file imports no torch: the build of the book compares hashes too.
"""

import ast
import hashlib
import io
import tokenize
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PACKAGE = "attnlib.kernels"


def kernel_hash(kernel: str) -> str:
    """The hash of `<kernel>.py` and of all code that it imports from here: what was measured."""
    return code_hash(*files_of(kernel))


def launches_hash(kernel: str) -> str:
    """The hash of the same and of `<kernel>_proof.py`: what was compiled, and how."""
    return code_hash(*files_of(kernel), FOLDER / f"{kernel}_proof.py")


def files_of(kernel: str) -> list[Path]:
    """`<kernel>.py` and the files of this folder that it imports, and those that they import.

    `launch.py` is left out: it checks arguments and changes no number and no time.
    """
    found, waiting = [], [kernel]
    while waiting:
        name = waiting.pop(0)
        if name in found or name == "launch":
            continue
        found.append(name)
        tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        waiting += [m.rpartition(".")[2] for m in modules if m and m.startswith(f"{PACKAGE}.")]
    return [FOLDER / f"{name}.py" for name in found]


def code_hash(*files: Path) -> str:
    """The first 16 digits of the SHA-256 of the code in these files."""
    code = "\0".join(code_of(file.read_text(encoding="utf-8")) for file in files)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def code_of(source: str) -> str:
    """The source without comments, docstrings, blank lines and spaces at the end of lines."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Module(body=body) | ast.ClassDef(body=body) | ast.FunctionDef(body=body):
                for docstring in body[:1]:
                    if is_string(docstring):
                        first, last = docstring.lineno, docstring.end_lineno
                        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def is_string(statement: ast.stmt) -> bool:
    """Whether a statement is a string and nothing else."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False
