"""Reads the imports of the book's code, without importing it."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = [
    "attend", "checks", "score", "support", "patterns", "weight", "read", "memory", "atlas",
    "conformance",
]  # fmt: skip
CORE_MAY = {"torch", "einops", "jaxtyping", "numpy"}
KERNELS_MAY = {"torch", "triton"}
PROOFS_MAY = {"fla", "flash_sigmoid", "flashinfer", "natten"}  # peers, where they are installed
NEVER_FROM_CORE = {"attnlib.figures", "attnlib.tasks", "attnlib.models", "attnlib.training"}
DRAWING = {"matplotlib", "ipywidgets", "IPython", "PIL"}
DRAWING_AT = ("attnlib/figures/", "attnlib/ledger.py", "attnlib/claim_card.py")


def imported(source: str, module: str) -> set[str]:
    """Absolute names of all modules that the code of the package module `module` imports."""
    package = module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names} | {origin}
    return names


def module_name(file: Path, root: Path = ROOT) -> str:
    """attnlib/score/rope.py is attnlib.score.rope, kernels/x.py is attnlib.kernels.x."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(("attnlib", *parts) if parts[0] == "kernels" else parts)


def is_core(file: Path, root: Path = ROOT) -> bool:
    parts = file.relative_to(root).with_suffix("").parts
    return parts[0] == "attnlib" and (parts[1] in CORE or parts[1] == "__init__")


def wrong_imports(file: Path, standard: frozenset[str], root: Path = ROOT) -> list[str]:
    """The imports of `file` that break an arrow of the layout."""
    source = file.read_text(encoding="utf-8")
    name = file.relative_to(root).as_posix()
    complaints = []
    for module in sorted(imported(source, module_name(file, root))):
        top = module.split(".")[0]
        ours = top in ("attnlib", "kernels", "chapters", "book", "tests")
        if top in ("kernels", "chapters", "book", "tests"):
            complaints.append(f"{name} imports {module}: arrows run chapters, attnlib, kernels")
        if name.startswith("kernels/"):
            if ours and not module.startswith("attnlib.kernels"):
                complaints.append(f"{name} imports {module}: kernels import nothing of attnlib")
            beside = file.with_name(f"{top}.py").is_file()  # a script of a bare GPU machine
            may = KERNELS_MAY | standard | (PROOFS_MAY if name.endswith("_proof.py") else set())
            if not ours and not beside and top not in may:
                complaints.append(f"{name} imports {module}: kernels import torch and triton only")
        elif is_core(file, root):
            if any(f"{module}.".startswith(f"{never}.") for never in NEVER_FROM_CORE):
                complaints.append(f"{name} imports {module}: a core module")
            if not ours and top not in CORE_MAY | standard:
                complaints.append(f"{name} imports {module}: a core module")
        if top in DRAWING and not name.startswith(DRAWING_AT):
            complaints.append(f"{name} imports {module}: only figures and the ledger draw")
    return complaints
