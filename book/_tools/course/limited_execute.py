"""How nbgrader runs a submission: in the sandbox, within its time, with its printing cut.

nbgrader's own `Execute` lets a cell that ran too long fail and goes on. Added are: the kernel is
reached through files instead of the network, which the sandbox does not have; all cells together
have a limit, too; where the kernel dies or cannot be stopped, the cells after it count as failed
(nbgrader would take a test that was never run for one that passed); and of a test cell only errors
count (nbgrader would take a warning for a failure, and a number that is shown for a score).
"""

import time
from pathlib import Path

from endings import DIED, NOT_RUN, TOO_LONG
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_output
from nbgrader.preprocessors import Execute
from traitlets import Integer, Unicode

FREE = ("status", "execute_input")
"""Messages that do not count as printed."""


class LimitedExecute(Execute):
    """Runs the cells of one submission; its limits come from the configuration."""

    seconds = Integer(240, help="for all cells together").tag(config=True)
    cell_seconds = Integer(60, help="for one cell").tag(config=True)
    output_bytes = Integer(2**20, help="what a cell may print").tag(config=True)
    sockets = Unicode("", help="the folder that kernel and grader share").tag(config=True)

    def __init__(self, **settings):
        super().__init__(**settings)
        self.stopped = ""
        self.printed = 0
        self.iopub_timeout = 10
        self.error_on_timeout = {
            "ename": TOO_LONG,
            "evalue": f"a cell may take {self.cell_seconds} s, all together {self.seconds} s",
            "traceback": [TOO_LONG],
        }

    def preprocess(self, nb, resources, *args, **options):
        self.deadline = time.monotonic() + self.seconds
        self.timeout_func = self.time_left
        return super().preprocess(nb, resources, *args, **options)

    def create_kernel_manager(self):
        manager = super().create_kernel_manager()
        manager.transport = "ipc"
        manager.ip = str(Path(self.sockets) / "kernel")
        manager.connection_file = str(Path(self.sockets) / "connection.json")
        return manager

    def time_left(self, cell) -> int:
        return max(1, min(self.cell_seconds, int(self.deadline - time.monotonic())))

    def preprocess_cell(self, cell, resources, cell_index):
        if cell.cell_type != "code" or not cell.source.strip():
            return cell, resources
        if not self.stopped and time.monotonic() > self.deadline:
            self.stopped = f"the time for all cells, {self.seconds} s, was over before this one"
        if self.stopped:
            cell.outputs = [error(NOT_RUN, self.stopped)]
            return cell, resources
        self.printed = 0
        allowed, started = self.time_left(cell), time.monotonic()
        try:
            cell, resources = super().preprocess_cell(cell, resources, cell_index)
        except DeadKernelError:
            self.stopped = "an earlier cell ended the process: too much memory, or an exit"
            cell.outputs = [*cell.outputs, error(DIED, "this cell ended the process")]
        except CellTimeoutError:
            if self.printed > self.output_bytes:
                message = "its output was too much to arrive in time"
            elif time.monotonic() - started >= allowed:  # it was interrupted, and went on
                self.stopped = "an earlier cell ran too long and could not be stopped"
                message = self.error_on_timeout["evalue"]
            else:
                message = "its output did not arrive in time"
            cell.outputs = [*cell.outputs, error(TOO_LONG, message)]
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.outputs = [output for output in cell.outputs if output.output_type == "error"]
        return cell, resources

    def process_message(self, msg, cell, cell_index):
        """Take what a cell prints until there is too much of it."""
        if msg["msg_type"] not in FREE:
            before = self.printed
            content = msg["content"]
            self.printed += len(content["text"] if "text" in content else str(content))
            if self.printed > self.output_bytes:
                if before <= self.output_bytes:
                    text = f"[more than {self.output_bytes} bytes: the rest is cut]"
                    cell.outputs.append(new_output("stream", name="stdout", text=text))
                if msg["msg_type"] == "error":
                    cell.outputs.append(error(content["ename"][:100], content["evalue"][:1000]))
                return None
        return super().process_message(msg, cell, cell_index)


def error(name: str, message: str):
    return new_output("error", ename=name, evalue=message, traceback=[f"{name}: {message}"])
