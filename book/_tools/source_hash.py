"""A hash of code together with the attnlib modules that it uses.

A notebook or a study is stale when this hash differs from the one stored with its results.
Comments, docstrings and blank lines do not count, so correcting a word runs nothing again.
Imports are read with `ast`; nothing is imported. A name taken from a package (`from attnlib import
softmax_attention`) leads to the module that defines it, not to everything the package holds, so
that a new mechanism does not make every older chapter stale.
"""

import ast
import hashlib
import io
import tokenize
from pathlib import Path

PACKAGE = "attnlib"


def code_hash(sources: list[str], root: Path, files: list[Path] = ()) -> str:
    """Hash of `sources` (read as one program), of the modules they use, and of further `files`."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(meaningful(source).encode() + b"\0")
    modules = modules_used("\n".join(sources), root)
    for file in [*sorted(modules), *files]:
        text = file.read_text(encoding="utf-8")
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update((meaningful(text) if file.suffix == ".py" else text).encode() + b"\0")
    return digest.hexdigest()[:16]


def meaningful(source: str) -> str:
    """`source` without comments, docstrings, blank lines and trailing spaces."""
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):
        return source
    lines = source.splitlines()
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for first, last in _docstring_rows(tree):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _docstring_rows(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())) as docstring, *_]:
                    yield docstring.lineno, docstring.end_lineno


def modules_used(source: str, root: Path) -> set[Path]:
    """The files of attnlib and kernels that `source` uses, directly or through other modules."""
    found: set[Path] = set()
    waiting = _imports(source, PACKAGE)
    seen = set()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen:
            continue
        seen.add((module, name))
        file = module_file(f"{module}.{name}" if name else module, root)
        if file is None:
            file = module_file(module, root)
            bound = _bound_names(file, module).get(name) if _is_package(file) else None
            if bound:
                waiting.append(bound)
                continue
            name = None
        if file is None or file in found:
            continue
        found.add(file)
        dotted = f"{module}.{name}" if name else module
        inside = dotted if _is_package(file) else dotted.rpartition(".")[0]
        waiting.extend(_imports(file.read_text(encoding="utf-8"), inside))
    return found


def module_file(dotted: str, root: Path) -> Path | None:
    """The file of a module of the package; `attnlib.kernels` is the folder `kernels`."""
    parts = dotted.split(".")
    if parts[0] != PACKAGE:
        return None
    if parts[1:2] == ["kernels"]:
        parts = parts[1:]
    stem = root.joinpath(*parts)
    for file in (stem.with_suffix(".py"), stem / "__init__.py"):
        if file.is_file():
            return file
    return None


def _is_package(file: Path | None) -> bool:
    return file is not None and file.name == "__init__.py"


def _imports(source: str, package: str) -> list[tuple[str, str | None]]:
    """Pairs (module, name) that `source` takes from attnlib; name is None for a whole module."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    pairs, aliases = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = _absolute(node, package)
            pairs += [(module, None if a.name == "*" else a.name) for a in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == PACKAGE:
                    aliases.add(alias.asname or PACKAGE)
                else:
                    pairs.append((alias.name, None))
                    aliases.update({PACKAGE} if not alias.asname else ())
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name)) if name in aliases:
                pairs.append((PACKAGE, node.attr))
    return [(module, name) for module, name in pairs if module.split(".")[0] == PACKAGE]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _bound_names(file: Path, module: str) -> dict[str, tuple[str, str | None]]:
    """Names that a package's __init__ takes from its modules, and where from."""
    bound = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            source = _absolute(node, module)
            for alias in node.names:
                if source.split(".")[0] == PACKAGE and alias.name != "*":
                    bound[alias.asname or alias.name] = (source, alias.name)
    return bound
