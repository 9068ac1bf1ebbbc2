"""How long attention on a square grid takes: the local form against the dense one."""

import time

import torch
import torch.nn.functional as F

from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.read.neighborhood_attention import generalized_neighborhood_attention

FORMS = ("dense", "neighborhood", "blocks")


def grid_seconds(
    form: str, side: int, *, window: int = 8, width: int = 32, repeats: int = 5, seed: int = 0
) -> float:
    """Processor seconds of one read on side x side places, one head, the least of `repeats`.

    form: "dense", PyTorch's own attention over all pairs; "neighborhood", a window for each place;
    "blocks", one window for each block of window x window places.
    One call goes before, unmeasured. Processor seconds leave out what other programs take; with
    several threads they are the sum over the threads.
    """
    check_choice("form", form, FORMS)
    check_count("side", side, least=window)
    check_count("repeats", repeats, least=1)
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(1, side * side, width, generator=generator) for _ in range(3)]
    rule = {"grid": (side, side), "window": window, "stride": window if form == "blocks" else 1}

    def read() -> torch.Tensor:
        if form == "dense":
            return F.scaled_dot_product_attention(*inputs)
        return generalized_neighborhood_attention(*inputs, **rule)

    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        read()
        taken.append(time.process_time() - start)
    return min(taken[1:])
