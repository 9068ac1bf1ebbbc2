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


class _BytesTouched(TorchDispatchMode):
    """Adds up what each operation reads and writes; a view touches nothing."""

    touched = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        storages = {leaf.untyped_storage().data_ptr() for leaf in given}
        is_view = any(leaf.untyped_storage().data_ptr() in storages for leaf in made)
        if operation._schema.is_mutable or not is_view:
            self.touched += sum(leaf.nbytes for leaf in given + made)
        return results


def bytes_touched(computation: Callable[[], object]) -> int:
    """Bytes that the operations of `computation()` read and write, each operation by itself.

    What a program moves whose operations do not know of each other: every operand comes from
    memory and every result goes there, however small it is.
    """
    with _BytesTouched() as counted:
        computation()
    return counted.touched
