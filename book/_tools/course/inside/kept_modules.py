"""What the tests rely on, remembered and put back: functions of attnlib, torch and Python itself.

A submission that replaces `torch.allclose` makes every comparison true. Before each test all that
was replaced is put back, and its name is noted.
"""

import builtins
import contextlib
import importlib
import sys
from types import FunctionType, ModuleType

TORCH = ("torch", "torch.linalg", "torch.nn", "torch.nn.functional", "torch.testing")
CLASSES = (("torch", "Tensor"), ("torch.nn", "Module"))
OURS = "attnlib"


class KeptModules:
    """The functions and classes of some modules as they were when this was made.

    These are Python's own, the named modules, and the most used of torch and all of attnlib where
    those are loaded.
    """

    def __init__(self, names: list[str]):
        for name in names:
            with contextlib.suppress(ImportError):  # `from math import pi` names no module math.pi
                importlib.import_module(name)
        ours = [name for name in sys.modules if name.split(".")[0] == OURS]
        chosen = {*names, *ours, *(TORCH if "torch" in sys.modules else ())} & sys.modules.keys()
        self.modules = {name: sys.modules[name] for name in sorted(chosen)}
        owners = [builtins, *self.modules.values(), *self.classes()]
        self.members = [(owner, callables(owner)) for owner in owners]
        self.names = [(c, frozenset(vars(c))) for c in self.classes()]
        values = [value for _, members in self.members for value in members.values()]
        functions = {value for value in values if isinstance(value, FunctionType)}
        self.bodies = [(function, body(function)) for function in functions]

    def classes(self) -> list[type]:
        """Some of torch's classes, and all of attnlib's."""
        found = [getattr(self.modules[m], name) for m, name in CLASSES if m in self.modules]
        for module in self.modules.values():
            for value in vars(module).values():
                if isinstance(value, type) and value.__module__.split(".")[0] == OURS:
                    found.append(value)
        return list(dict.fromkeys(found))

    def put_back(self) -> list[str]:
        """Restore what was replaced; the names of it."""
        replaced = []
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                replaced.append(name)
                sys.modules[name] = module
        for owner, members in self.members:
            now = vars(owner)
            for name, value in members.items():
                if now.get(name) is not value:
                    if getattr(now.get(name), "__wrapped__", None) is not value:  # as torch does
                        replaced.append(f"{owner.__name__}.{name}")
                    setattr(owner, name, value)
        for cls, names in self.names:
            for name in vars(cls).keys() - names:
                if any(name in vars(base) for base in cls.__mro__[1:]):  # it hides what was there
                    replaced.append(f"{cls.__name__}.{name}")
                    delattr(cls, name)
        for function, before in self.bodies:
            if body(function) != before:
                replaced.append(f"{function.__module__}.{function.__qualname__}")
                function.__code__, function.__defaults__, function.__kwdefaults__ = before
        return replaced


def callables(owner: ModuleType | type) -> dict:
    """What can be called in a module or class, and the modules in it."""
    kinds = (classmethod, staticmethod, property, ModuleType)
    return {
        name: value
        for name, value in vars(owner).items()
        if isinstance(name, str)
        and (callable(value) or isinstance(value, kinds))
        and name not in ("__builtins__", "__class__", "__dict__", "__weakref__", "_")
    }


def body(function: FunctionType) -> tuple:
    return function.__code__, function.__defaults__, function.__kwdefaults__
