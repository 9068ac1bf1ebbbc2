"""A program for torchrun in which process 1 does not do its part.

It leaves before it joins ("absent") or after ("leaves"), dies, or stays silent.

torchrun ... one_process_fails.py HOW SECONDS
"""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from attnlib.distributed import joined, tree_decode

how, seconds = sys.argv[1], float(sys.argv[2])
if how == "absent" and os.environ["RANK"] == "1":
    sys.exit(0)
with joined(seconds):
    if dist.get_rank() == 1:
        if how == "leaves":
            os._exit(0)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    query = torch.ones(2, 1, 4)
    tree_decode(query, query, query)
    print("no process missed another")
