"""Which tokens must be global so that a gap finds its fact in another document?"""

from attnlib.models.cloze import run_cloze
from attnlib.study import grid

STEPS = 300
CELLS = [
    *grid(which=["gaps", "others", "none"], told=[False], steps=[STEPS]),
    {"which": "none", "told": True, "steps": STEPS},
    {"which": "gaps", "told": False, "steps": 20},
]
SEEDS = range(3)


def run(cell: dict, seed: int) -> dict:
    """Accuracy of the gaps and pairs of a text."""
    return run_cloze(**cell, seed=seed)
