"""How many bytes a kernel asks for: counted, load by load, while Triton interprets it.

A GPU has caches, so what is asked for is more than what its large memory moves. The count is the
same on every machine: it belongs to the kernel and its tiles, not to a chip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from unittest import mock


class Traffic(NamedTuple):
    """Bytes that the loads and stores of a computation asked for; masked numbers do not count."""

    loaded: int
    stored: int


def traffic_of(computation: Callable[[], object]) -> Traffic:
    """The bytes that all kernels in `computation()` load and store. Atomics are not counted.

    Raises RuntimeError where no load was seen: a compiled kernel cannot be watched, and a
    computation without kernels has nothing to count.
    """
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    load, store = Builder.create_masked_load, Builder.create_masked_store
    loaded, stored = 0, 0

    def counted_load(builder, pointers, mask, *rest):
        nonlocal loaded
        loaded += int(mask.data.sum()) * bytes_behind(pointers)
        return load(builder, pointers, mask, *rest)

    def counted_store(builder, pointers, value, mask, *rest):
        nonlocal stored
        stored += int(mask.data.sum()) * bytes_behind(pointers)
        return store(builder, pointers, value, mask, *rest)

    with (
        mock.patch.object(Builder, "create_masked_load", counted_load),
        mock.patch.object(Builder, "create_masked_store", counted_store),
    ):
        computation()
    if loaded + stored == 0:
        raise RuntimeError(
            "no load and no store was seen: traffic can be counted only where Triton interprets "
            "the kernels (TRITON_INTERPRET=1 before triton is first imported)"
        )
    return Traffic(loaded, stored)


def bytes_behind(pointers) -> int:
    """Bytes of one number that a block of pointers points to."""
    bits = pointers.get_element_ty().primitive_bitwidth
    return max(8, bits) // 8
