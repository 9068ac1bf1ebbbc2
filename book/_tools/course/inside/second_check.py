"""The second opinion: the submission as plain Python in a fresh process, its functions tested anew.

Runs in the sandbox with the book's python. Its standard input holds a JSON list of cells, each
{id, kind, source, seconds} with kind "given", "answer" or "test". What a notebook does to its own
process is gone here: there is no IPython to hook, whatever replaces functions of attnlib, torch or
Python is undone before each test (kept_modules.py), and a test sees the names that the assignment
gave as the assignment gave them, not as the submission rebound them.

Written to standard output, which students' code does not have: a line {"id", "message"} for each
test, the message empty where it passed; and {"end", "replaced"} as the last. A submission that
looks for that output can still write there. Two lines for one test betray it; nothing here
prevents it.
"""

import ast
import builtins
import json
import linecache
import os
import signal
import sys
import types

from kept_modules import KeptModules

MOST_WORDS = 600
TOO_LONG = "TooLong"


class TooLong(BaseException):
    """The time of a cell is over; no Exception, so that `except Exception` lets it through."""


class Nothing:
    """Stands in for IPython: whatever is asked of it does nothing."""

    def __getattr__(self, name):
        return self

    def __call__(self, *given, **named):
        return self


def run(cells: list[dict], tell, answers: list[str], modules: list[str]) -> list[str]:
    """Carry out the cells; `tell(id, message)` for each test; what the submission replaced.

    `answers` are the names that the assignment's own solutions set, `modules` those that it uses.
    """
    kept = KeptModules(modules)
    student = main_module()
    ours, given = dict(student), set()
    replaced = []
    for cell in cells:
        if cell["kind"] == "answer":
            carried_out(cell, student)
            continue
        replaced += kept.put_back()
        hidden = {k for k in student if k in given or shadows(k)} - {*answers}
        ours.update({k: v for k, v in student.items() if k not in hidden})
        before = dict(ours)
        message = carried_out(cell, ours, Both(ours, student))
        changed = {k: v for k, v in ours.items() if before.get(k, Nothing) is not v}
        student.update(changed)
        if cell["kind"] == "given":
            given |= changed.keys() - {*answers}
        else:
            tell(cell["id"], message)
    return replaced + kept.put_back()


def main_module() -> dict:
    """The namespace of a module `__main__`, which is what `import __main__` finds from here on."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    space = vars(module)
    space.update(get_ipython=Nothing(), display=Nothing(), __builtins__=builtins)
    return space


def shadows(name: str) -> bool:
    """Whether a name hides one of Python's own, as `sum = 0` does."""
    return hasattr(builtins, name) and not name.startswith("__")


class Both:
    """What a given cell or a test sets is seen by the submission at once, as in a notebook."""

    def __init__(self, ours: dict, student: dict):
        self.ours, self.student = ours, student

    def __getitem__(self, name):
        return self.ours[name]

    def __setitem__(self, name, value):
        self.ours[name] = self.student[name] = value

    def __delitem__(self, name):
        del self.ours[name]
        self.student.pop(name, None)


def carried_out(cell: dict, space: dict, names: Both | None = None) -> str:
    """Run a cell; what it raised, in one line, or nothing."""

    def stop(*_):
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, cell.get("seconds", 60))
    try:
        exec(compiled(cell["source"], f"<{cell['id']}>"), space, names or space)
    except TooLong:
        return TOO_LONG
    except BaseException as error:  # a student's code may raise anything, SystemExit too
        return described(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def described(error: BaseException) -> str:
    """The error and its words; a student's class may fail to give any."""
    try:
        return f"{type(error).__name__}: {error}"[:MOST_WORDS]
    except BaseException:
        return type(error).__name__


def compiled(source: str, name: str) -> types.CodeType:
    """The code of a cell whose lines can be looked up by `inspect`, as a Triton kernel needs."""
    source = plain(source)
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)
    return compile(source, name, "exec")


def plain(source: str) -> str:
    """The source without what only IPython reads: magics, shell commands and questions."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "\n".join(map(plain_line, source.splitlines()))
    return source


def plain_line(line: str) -> str:
    bare = line.strip()
    if bare.startswith("%%"):
        return ""
    if bare.startswith(("%", "!", "?")) or bare.endswith("?"):
        return line[: len(line) - len(line.lstrip())] + "pass"
    return line


def main() -> None:
    task = json.loads(sys.stdin.read())
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)

    def tell(name: str, message: str) -> None:
        os.write(answer, f"{json.dumps({'id': name, 'message': message})}\n".encode())

    replaced = run(task["cells"], tell, task["answers"], task["modules"])
    os.write(answer, f"{json.dumps({'end': True, 'replaced': replaced[:20]})}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
