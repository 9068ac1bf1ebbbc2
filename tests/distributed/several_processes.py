"""Runs a function in several processes that form a group, without torchrun and its start-up."""

import datetime
import multiprocessing
import os
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from attnlib.distributed.processes import LOOPBACK

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "attnlib.distributed"])


def in_processes(count, function, *arguments, seconds=20.0):
    """`function(rank, *arguments)` in each of `count` processes: what each returned or raised.

    A process that ends without a word counts as None; one that outlasts the limit is killed and
    counts as a TimeoutError.
    """
    with tempfile.TemporaryDirectory() as folder:
        answers = SERVER.SimpleQueue()
        workers = [
            SERVER.Process(
                target=work, args=(rank, count, folder, seconds, answers, function, arguments)
            )
            for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        found = [None] * count
        limit = time.monotonic() + 3 * seconds
        while any(worker.is_alive() for worker in workers) or not answers.empty():
            if not answers.empty():
                rank, answer = answers.get()
                found[rank] = answer
            elif time.monotonic() > limit:
                for rank, worker in enumerate(workers):
                    if worker.is_alive():
                        worker.kill()
                        found[rank] = TimeoutError(f"process {rank} outlasted the limit")
                break
            else:
                time.sleep(0.005)
        for worker in workers:
            worker.join()
        return found


def work(rank, count, folder, seconds, answers, function, arguments):
    """One process: once all have joined through a file, run the function, send its result home."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    limit = datetime.timedelta(seconds=seconds)
    store = dist.FileStore(str(Path(folder) / "group"), count)
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
        store.set(f"joined {rank}", "")
        store.wait([f"joined {other}" for other in range(count)], limit)
        answers.put((rank, function(rank, *arguments)))
    except Exception as error:
        error.add_note(traceback.format_exc())
        answers.put((rank, error))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
