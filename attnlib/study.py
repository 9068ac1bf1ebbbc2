"""Studies: experiments too long for a page, run at length and drawn from on the page.

A study is a file `<slug>.study.py` beside its chapter:

    \"\"\"What the study asks, in a sentence.\"\"\"
    from attnlib.study import grid

    CELLS = grid(points=[5, 10, 20], read=["pointer", "weighted sum"])
    SEEDS = range(5)

    def run(cell, seed):
        ...
        return {"accuracy": accuracy}

`make study CHAPTER=<part>/<slug>` runs every cell with every seed and writes `<slug>.study.json`.
The page loads that, draws from it, and runs one cell again:

    hulls = study.load("soft-lookup.study.json")
    hulls.values("accuracy", points=5, read="pointer")     # one number per seed
    hulls.rerun_one(seed=0, points=5, read="pointer")      # raises if outside the stored spread
    hulls.command                                          # what produced it

The JSON file holds: format (1), question, command, code (hash of the file and of what it imports),
seeds, versions, device, seconds (all runs together), results: a list of {cell, seed, seconds,
values}, where values are numbers by name.
"""

import importlib.util
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev

LEAST_SEEDS = 3


def grid(**axes) -> list[dict]:
    """All combinations of the values of `axes`, as the cells of a study."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


@dataclass(frozen=True)
class Study:
    """The stored results of a study."""

    path: Path
    facts: dict

    @property
    def command(self) -> str:
        """The command that produced the results."""
        return self.facts["command"]

    @property
    def cells(self) -> list[dict]:
        """The cells that have results, each once, in order."""
        cells = []
        for result in self.facts["results"]:
            if result["cell"] not in cells:
                cells.append(result["cell"])
        return cells

    def values(self, name: str, **cell) -> list[float]:
        """The value `name` of the cell, one number per seed."""
        results = self._results(cell)
        if name not in results[0]["values"]:
            names = ", ".join(results[0]["values"])
            raise ValueError(f"name: {self.path.name} stores {names}; got {name!r}")
        return [result["values"][name] for result in results]

    def _results(self, cell: dict) -> list[dict]:
        found = [result for result in self.facts["results"] if result["cell"] == cell]
        if not found:
            cells = "\n".join(f"  {known}" for known in self.cells)
            raise ValueError(f"cell: {self.path.name} has no cell {cell}; it has\n{cells}")
        return found

    def rerun_one(self, *, seed: int, **cell) -> dict:
        """Runs one cell with one seed here and now; its values, if they fit the stored ones.

        A value fits if it lies between the least and the greatest of the seeds, widened by their
        sample standard deviation: processors differ, so equality is not asked for.
        """
        results = self._results(cell)
        if seed not in [result["seed"] for result in results]:
            raise ValueError(f"seed: stored are {self.facts['seeds']}, got {seed}")
        fresh = load_code(self.path.with_suffix(".py")).run(dict(cell), seed)
        for name, value in fresh.items():
            least, greatest = bounds([result["values"][name] for result in results])
            if not least <= float(value) <= greatest:
                raise AssertionError(
                    f"{self.path.name}: {name} of {cell} with seed {seed} is {value:.6g} here; "
                    f"the stored seeds allow {least:.6g} to {greatest:.6g}"
                )
        return fresh


def bounds(stored: list[float]) -> tuple[float, float]:
    """Where one more run may lie: the range of the seeds, widened by their spread."""
    spread = stdev(stored) if len(stored) > 1 else 0.0
    margin = max(spread, 1e-6 * abs(mean(stored)))
    return min(stored) - margin, max(stored) + margin


def load(path: str | Path) -> Study:
    """The study stored at `path`, relative to the folder of the page."""
    path = Path(path)
    if not path.name.endswith(".study.json"):
        raise ValueError(f"path: expected a file <slug>.study.json, got {path.name}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; `make study CHAPTER=<part>/<slug>` writes it, "
            "and a page looks for it in its own folder"
        )
    return Study(path, json.loads(path.read_text(encoding="utf-8")))


def load_code(path: Path):
    """The module of the study at `path`, with CELLS, SEEDS and run(cell, seed)."""
    spec = importlib.util.spec_from_file_location(path.name.replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CELLS", "SEEDS", "run"):
        if not hasattr(module, name):
            raise ValueError(f"{path.name}: expected it to define {name}")
    if len(list(module.SEEDS)) < LEAST_SEEDS:
        raise ValueError(f"{path.name}: SEEDS must hold at least {LEAST_SEEDS} seeds")
    return module
