"""Data sets that are made from a seed, each with its chance level and its optimum."""

from attnlib.tasks.copying import Copy, Induction
from attnlib.tasks.digits import Digits
from attnlib.tasks.grammar import Grammar
from attnlib.tasks.markov import Markov
from attnlib.tasks.needle import NeedleRetrieval
from attnlib.tasks.pointing import ConvexHull, Sorting
from attnlib.tasks.recall import KeyedRecall, MultiQueryRecall
from attnlib.tasks.shapes import ColoredShapes
from attnlib.tasks.span_answering import SpanAnswering
from attnlib.tasks.task import IGNORE, Task, TokenBatch
from attnlib.tasks.textures import TextureBorders

__all__ = [
    "IGNORE",
    "ColoredShapes",
    "ConvexHull",
    "Copy",
    "Digits",
    "Grammar",
    "Induction",
    "KeyedRecall",
    "Markov",
    "MultiQueryRecall",
    "NeedleRetrieval",
    "Sorting",
    "SpanAnswering",
    "Task",
    "TextureBorders",
    "TokenBatch",
]
