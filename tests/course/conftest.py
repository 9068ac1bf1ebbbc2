"""The course's tests use the book's tools; mutants import `assignment_cells` from this folder."""

import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "book" / "_tools"
sys.path[:0] = [str(TOOLS), str(TOOLS / "course")]
