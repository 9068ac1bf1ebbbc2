"""Counting what a computation makes, instead of timing it."""

from collections.abc import Callable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *made])
        return results


def largest_tensor(computation: Callable[[], object]) -> int:
    """Elements of the largest tensor that an operation in `computation()` gives as its result."""
    with _LargestTensor() as counted:
        computation()
    return counted.largest
