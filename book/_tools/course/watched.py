"""A bound on what all processes of a submission take together.

The kernel's limits count one process each. This thread looks at all that were started from here,
four times a second, and kills them when their memory, or the folder that they share with the
grader, grows beyond the limit.
"""

import contextlib
import threading
from pathlib import Path

import psutil


class Watched:
    """Use as a context: `with Watched(memory, folder, file_bytes) as watched: ...`.

    Afterwards `watched.reason` says why processes were killed; it is empty where none was.
    """

    def __init__(self, memory: int, folder: Path, file_bytes: int, every: float = 0.25):
        self.memory, self.folder, self.file_bytes = memory, folder, file_bytes
        self.every = every
        self.reason = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self.every):
            started = psutil.Process().children(recursive=True)
            if sum(map(resident, started)) > self.memory:
                # Pages that processes share count once only in this slower measure.
                if sum(map(proportional, started)) > self.memory:
                    self._kill(started, "its processes took too much memory together")
            elif size_of(self.folder) > self.file_bytes:
                self._kill(started, "it wrote too much into the grader's folder")

    def _kill(self, processes: list[psutil.Process], reason: str) -> None:
        self.reason = self.reason or reason
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()


def resident(process: psutil.Process) -> int:
    """The memory of a process, with what it shares; nothing for one that is gone."""
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def proportional(process: psutil.Process) -> int:
    """The memory of a process, of shared pages its part only."""
    with contextlib.suppress(psutil.Error, AttributeError):
        return process.memory_full_info().pss
    return resident(process)


def size_of(folder: Path) -> int:
    """The bytes of the files directly in a folder, and one level below."""
    total = 0
    for pattern in ("*", "*/*"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                total += path.lstat().st_size
    return total
