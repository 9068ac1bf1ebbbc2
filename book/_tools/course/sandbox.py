"""Where students' code runs: a process that sees little, reaches nothing and cannot take much.

bubblewrap (Debian's package `bubblewrap`) gives it namespaces of its own: no network, no other
processes, and a file system in which only the system's programs, the book's environment and the
packages `attnlib` and `kernels` exist, all of them read-only, beside a scratch folder in memory.
Sources of assignments, hidden tests and other submissions are not in it at all.
`setpriv` and `prlimit` (Debian's util-linux) take its rights and bound its memory, its files and
the number of its processes; what all its processes take together is bounded by watched.py.

What this does not promise: a student's code may do what it likes to its own process, in which the
tests run, too. Such tampering is detected (second_opinion.py), not prevented.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
INSIDE = Path(__file__).resolve().parent / "inside"
BOOK_ENV = ROOT / ".venv"
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin")
PROGRAMS = ("bwrap", "setpriv", "prlimit")
FIRST_USER = 200_000
HANDED = "/scratch/.handed"


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    cell_seconds: int = 60
    seconds: int = 240
    memory: int = 6 * 2**30
    """In bytes, of each process, and of all of them together. Programs and libraries that are
    mapped into it do not count for the former."""
    processes: int = 64
    """Processes and threads at one time."""
    file_bytes: int = 64 * 2**20
    """The largest file, and the whole of the scratch folder."""
    output_bytes: int = 2**20
    """What a cell may print; the rest is cut."""


def interpreter() -> Path:
    """The python of the book's environment, which has torch and attnlib."""
    return BOOK_ENV / "bin" / "python"


def obstacle() -> str | None:
    """Why this machine cannot isolate a submission, or None if it can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not found (Debian: apt install bubblewrap util-linux)"
    trial = subprocess.run(
        isolated(["true"], Limits()), capture_output=True, text=True, timeout=30, check=False
    )
    if trial.returncode:
        return f"bubblewrap does not start here: {trial.stderr.strip()[-300:]}"
    return None


def isolated(
    command: list[str], limits: Limits, shared: Path | None = None, handed: str | None = None
) -> list[str]:
    """The command line that runs `command` in the sandbox.

    `shared` is a folder that it may write to. `handed` is a file in it that only the grader may
    read: a copy that the command may read stands at HANDED.
    """
    read_only = [*interpreter_homes(), BOOK_ENV, ROOT / "attnlib", ROOT / "kernels", INSIDE]
    line = ["bwrap", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    line += ["--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    if os.geteuid() != 0:
        line += ["--unshare-user"]
    for path in filter(os.path.exists, SYSTEM):
        line += ["--symlink", os.readlink(path), path] if os.path.islink(path) else bind(path)
    line += [
        "--perms",
        "0755",
        "--dir",
        "/etc",
        "--ro-bind-try",
        "/etc/ld.so.cache",
        "/etc/ld.so.cache",
    ]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/scratch", "/dev/shm"):
        line += ["--size", str(limits.file_bytes), "--perms", "1777", "--tmpfs", folder]
    for folder in parents([*read_only, *([shared] if shared else [])]):
        line += ["--perms", "0755", "--dir", folder]
    for path in read_only:
        line += bind(str(path))
    if shared:
        line += ["--bind", str(shared), str(shared)]
    line += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/scratch", "--clearenv"]
    for name, value in environment().items():
        line += ["--setenv", name, value]
    if handed:
        line += ["sh", "-c", f'install -m 0444 "$0" {HANDED} && exec "$@"', handed]
    return [*line, *bounded(limits), *command]


def bounded(limits: Limits) -> list[str]:
    """No rights, a user of its own, and the limits of the kernel on what a process may take."""
    rights = ["--no-new-privs", "--bounding-set=-all"]
    if os.geteuid() == 0:
        nobody = FIRST_USER + os.getpid()  # limits on processes are counted for each user
        rights += [f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
    return [
        *("setpriv", *rights),
        *("prlimit", f"--data={limits.memory}", f"--nproc={limits.processes}"),
        *(f"--fsize={limits.file_bytes}", "--core=0"),
    ]


def environment() -> dict[str, str]:
    """All that the process inherits: one thread, figures without a screen, kernels interpreted."""
    return {
        "HOME": "/scratch",
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "IPYTHONDIR": "/scratch/.ipython",
        "MPLCONFIGDIR": "/scratch/.matplotlib",
        "PYTHONDONTWRITEBYTECODE": "1",
        **SETTINGS,
    }


SETTINGS = {
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TRITON_INTERPRET": "1",
    "ATTN_STATIC": "1",
    "TQDM_DISABLE": "1",
}
"""The same with and without isolation."""


def interpreter_homes() -> list[Path]:
    """Where the python behind the environment lives, when that is not the system's own."""
    facts = (BOOK_ENV / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    home = next(line.split("=", 1)[1] for line in facts if line.startswith("home"))
    named, real = Path(home.strip()).parent, interpreter().resolve().parents[1]
    return [path for path in {named, real} if not str(path).startswith(SYSTEM)]


def bind(path: str) -> list[str]:
    return ["--ro-bind", path, path]


def parents(paths: list[Path]) -> list[str]:
    """The folders above the paths, outermost first, without those that the system brings."""
    found = {str(parent) for path in paths for parent in path.parents if str(parent) != "/"}
    return sorted(name for name in found - {"/tmp"} if not name.startswith(SYSTEM))
