"""Attention over many processes: partial reads merged across machines, every byte counted.

The functions are called in every process of a group that torchrun started (`joined`); `run` starts
such a group on this machine and gives back what it found. Tested with gloo on CPU tensors.
"""

from attnlib.distributed.decoding import (
    all_reduce_decode,
    chain_decode,
    ring_decode,
    tree_decode,
)
from attnlib.distributed.messages import Traffic
from attnlib.distributed.processes import joined, run
from attnlib.distributed.ring import ring_attention

__all__ = [
    "Traffic",
    "all_reduce_decode",
    "chain_decode",
    "joined",
    "ring_attention",
    "ring_decode",
    "run",
    "tree_decode",
]
