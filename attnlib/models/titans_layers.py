r"""Three uses of a memory that learns: as context, as a gate, as a layer (Titans).

context   attention over [persistent tokens; what the memory answers; the tokens of a segment]
gate      attention over [persistent tokens; a window] times a gate made of the memory's answer
layer     the memory first, attention over [persistent tokens; a window of its answers] after it
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.atlas import Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_count, check_tensor
from attnlib.memory.neural_memory import MemoryState
from attnlib.models.attention_layer import check_divides, projection
from attnlib.models.learned_memory import LearnedMemory
from attnlib.models.state_layer import ShortConvolution
from attnlib.read.heads import merge_heads, split_heads
from attnlib.support import sink_and_window

TITANS = {
    "paper": "titans-neural-memory",
    "chapter": "7-memory/test-time-memory",
    "section": "context-gate-layer",
    "step": "memory",
    "promises": None,
}
"""What the three layers have in common in the atlas."""

KeysAndValues = tuple[Float[Tensor, "batch H _ D"], Float[Tensor, "batch H _ D"]]


class StreamingLayer(nn.Module):
    """A layer that reads a stream in pieces of any length: `step`; `forward` is one piece.

    A short convolution first lets every token know its neighbors (no other positions are used), in
    place of the paper's one for each of q, k and v. A subclass says what happens to the piece
    (`piece`). The state is a pair: the last tokens for the convolution, and the subclass's own.
    """

    is_causal = True

    def __init__(self, width: int, heads: int, persistent: int, convolution: int):
        super().__init__()
        check_divides("heads", heads, "width", width)
        check_count("persistent", persistent)
        check_count("convolution", convolution, least=1)
        self.taps = convolution
        self.convolution = ShortConvolution(width, convolution)
        self.persistent = nn.Parameter(torch.randn(persistent, width) * width**-0.5)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"]:
        """The read of each token from itself and the tokens before it."""
        if attn_mask is not None or return_weights:
            raise ValueError("attn_mask and return_weights must be left out: here a state is read")
        return self.step(None, x)[0]

    def step(
        self, state: tuple[Tensor, Any] | None, x: Float[Tensor, "batch N width"]
    ) -> tuple[Float[Tensor, "batch N width"], tuple[Tensor, Any]]:
        """(read, new state) for the next token or tokens; pass None to begin.

        In pieces of any length it gives the rows of `forward`. Raises ValueError for tokens of
        another shape.
        """
        check_tensor("x", x)
        if x.dim() != 3 or x.shape[-1] != self.persistent.shape[-1]:
            raise ValueError(
                f"x must have shape (batch, N, {self.persistent.shape[-1]}), got {tuple(x.shape)}"
            )
        last, own = (x[:, :0], None) if state is None else state
        tokens = torch.cat((last, x), dim=1)
        mixed = self.convolution(tokens)[:, last.shape[1] :]
        read, own = self.piece(own, mixed)
        kept = min(self.taps - 1, tokens.shape[1])
        return read, (tokens[:, tokens.shape[1] - kept :], own)

    def piece(self, state: Any, x: Float[Tensor, "batch N width"]) -> tuple[Tensor, Any]:
        """(read, new state) for tokens that have met their neighbors."""
        raise NotImplementedError

    def standing(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch P width"]:
        """The persistent tokens, for each sequence of the batch."""
        return self.persistent.expand(x.shape[0], -1, -1)


class Projections(nn.Module):
    """Queries, keys and values of all heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_query, self.to_key = projection(width, width), projection(width, width)
        self.to_value = projection(width, width)

    def queries(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch H N D"]:
        """The queries of all heads."""
        return split_heads(self.to_query(x), self.heads)

    def keys_and_values(self, x: Float[Tensor, "batch N width"]) -> KeysAndValues:
        """The keys and values of all heads."""
        return tuple(split_heads(to(x), self.heads) for to in (self.to_key, self.to_value))


class WindowAttention(Projections):
    """Softmax attention to standing tokens and to the last `window` of a stream."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__(width, heads)
        check_count("window", window, least=1)
        self.window = window

    def forward(
        self,
        kept: KeysAndValues | None,
        x: Float[Tensor, "batch N width"],
        standing: Float[Tensor, "batch P width"],
    ) -> tuple[Float[Tensor, "batch N width"], KeysAndValues]:
        """(reads, the keys and values that the next token may still see)."""
        new, first = self.keys_and_values(x), self.keys_and_values(standing)
        kept = tuple(part[:, :, :0] for part in new) if kept is None else kept
        key, value = joined(joined(first, kept), new)
        read = attend(
            self.queries(x),
            key,
            value,
            support=sink_and_window(standing.shape[1], self.window),
            is_causal=True,
            query_offset=key.shape[2] - x.shape[1],
        )
        start = max(standing.shape[1], key.shape[2] - self.window + 1)
        return merge_heads(read), (key[:, :, start:], value[:, :, start:])


class PersistentWindow(StreamingLayer):
    """A window and persistent tokens, no memory: what the layers below are compared with.

    Arguments as in `MemoryAsGate`. What lies `window` tokens back is gone.
    """

    def __init__(
        self, width: int, heads: int, *, window: int, persistent: int = 4, convolution: int = 4
    ):
        super().__init__(width, heads, persistent, convolution)
        self.attention = WindowAttention(width, heads, window)
        self.to_output = projection(width, width)

    def piece(self, state, x):
        """Attention alone."""
        read, kept = self.attention(state, x, self.standing(x))
        return self.to_output(read), kept


class Gated(nn.Module):
    r"""norm(y) times sigmoid(norm(m)): both scaled by learnt vectors, the memory opens the gate.

    Source: Behrouz et al. (2025), section 4.2, below equation 28, where the
    non-linearity is not named.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.memory_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)

    def forward(self, y: Tensor, memory: Tensor) -> Tensor:
        """What attention read, channel by channel through the memory's gate."""
        return self.norm(y) * self.memory_norm(memory).sigmoid()


@mechanism(
    key="memory-as-gate",
    idea="attention over a window times a gate made of the memory's answer",
    equation=r"o = \mathrm{attention}([p;\, x]) \otimes M([p;\, x])",
    cost="time N (W + P) (D + E) and that of the memory; state W (D + E) and the memory",
    taxonomy=Taxonomy("self", "multi", "local", "multi-head"),
    **TITANS,
)
class MemoryAsGate(StreamingLayer):
    r"""Attention over a window beside a memory of everything; their product (MAG).

    .. math:: y = \mathrm{attention}([p;\ x]), \qquad o = W^O (y \otimes M([p;\ x]))

    The `persistent` tokens p are parameters: always visible, and written into the memory first.
    `depth` and the rest as in `LearnedMemory`. Shapes: x (batch, N, width) -> the same.
    State: `window` - 1 keys and values, the memory, and the last tokens of the convolution.
    Source: Behrouz et al. (2025), eqs. 26 to 28.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        persistent: int = 4,
        depth: int = 1,
        convolution: int = 4,
        **memory: int,
    ):
        super().__init__(width, heads, persistent, convolution)
        self.attention = WindowAttention(width, heads, window)
        self.memory = LearnedMemory(width, heads, depth=depth, **memory)
        self.gated = Gated(width)
        self.to_output = projection(width, width)

    def piece(self, state, x):
        """Both branches, and their product."""
        kept, memory = (None, begun(self.memory, self.standing(x))) if state is None else state
        y, kept = self.attention(kept, x, self.standing(x))
        answers, memory = self.memory(x, memory)
        return self.to_output(self.gated(y, answers)), (kept, memory)


@mechanism(
    key="memory-as-layer",
    idea="attention over a window of a memory's answers",
    equation=r"y = M([p;\, x]), \quad o = \mathrm{attention}([p;\, y])",
    cost="time N (W + P) (D + E) and that of the memory; state W (D + E) and the memory",
    taxonomy=Taxonomy("self", "multi", "local", "multi-head"),
    **TITANS,
)
class MemoryAsLayer(StreamingLayer):
    r"""The memory first, attention over a window of its answers after it (MAL).

    .. math:: y = M([p;\ x]), \qquad o = W^O \mathrm{attention}([p;\ y])

    Attention sees what the memory lets through and nothing else, as in models that stack recurrent
    layers and attention. Arguments, shapes and state as in `MemoryAsGate`.
    Source: Behrouz et al. (2025), eqs. 29 to 31; there attention sees the answers to p, here p.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        persistent: int = 4,
        depth: int = 1,
        convolution: int = 4,
        **memory: int,
    ):
        super().__init__(width, heads, persistent, convolution)
        self.memory = LearnedMemory(width, heads, depth=depth, **memory)
        self.attention = WindowAttention(width, heads, window)
        self.to_output = projection(width, width)

    def piece(self, state, x):
        """The memory, then attention."""
        kept, memory = (None, begun(self.memory, self.standing(x))) if state is None else state
        answers, memory = self.memory(x, memory)
        read, kept = self.attention(kept, answers, self.standing(x))
        return self.to_output(read), (kept, memory)


class Segment(NamedTuple):
    """What is kept of an open segment: keys and values of answers and tokens, its memory, place."""

    answers: KeysAndValues
    tokens: KeysAndValues
    asked: MemoryState
    place: int


@mechanism(
    key="memory-as-context",
    idea="attention over learnt tokens, a memory's answers and a segment decides what is written",
    equation=r"y = \mathrm{attention}([p;\, M_{t-1}(q);\, x]), \quad o = y \otimes M_t(y)",
    cost="time N (2 W + P) (D + E) for segments of W, and that of the memory; state 2 W (D + E)",
    taxonomy=Taxonomy("self", "multi", "local", "multi-head"),
    **TITANS,
)
class MemoryAsContext(StreamingLayer):
    r"""Segments that attend to themselves and to what the memory knew about them (MAC).

    .. math:: h = M_{t-1}(q), \quad y = \mathrm{attention}([p;\ h;\ x]), \quad
              M_t = \text{write } y, \quad o = W^O (y \otimes M_t(y))

    The stream is cut into segments of `segment` tokens. Each token asks the memory as it was before
    the segment; attention over persistent tokens, answers and the segment decides what is written.
    Token i sees the answers and tokens up to its own and asks the memory after its own write: the
    paper's formulas, taken for a whole segment, would let it see later tokens of the segment.
    Arguments and shapes as in `MemoryAsGate`. State: two keys and values for each token of the open
    segment, and two memories.
    Source: Behrouz et al. (2025), eqs. 21 to 25.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        segment: int,
        persistent: int = 4,
        depth: int = 1,
        convolution: int = 4,
        **memory: int,
    ):
        super().__init__(width, heads, persistent, convolution)
        check_count("segment", segment, least=1)
        self.segment = segment
        self.memory = LearnedMemory(width, heads, depth=depth, **memory)
        self.attention = Projections(width, heads)
        self.gated = Gated(width)
        self.to_output = projection(width, width)

    def piece(self, state, x):
        """One segment after the other."""
        if state is None:
            memory = begun(self.memory, self.standing(x))
            state = (self.opened(memory, x), memory)
        (segment, memory), start, reads = state, 0, [x[:, :0]]
        while start < x.shape[1]:
            end = min(x.shape[1], start + self.segment - segment.place)
            read, segment, memory = self.within(segment, memory, x[:, start:end])
            reads.append(read)
            start = end
        return self.to_output(torch.cat(reads, dim=1)), (segment, memory)

    def within(self, segment: Segment, memory: MemoryState, x: Float[Tensor, "batch N width"]):
        """(read, segment, memory) for tokens that lie in one segment."""
        new_answers = self.attention.keys_and_values(self.memory.read(x, segment.asked))
        answers = joined(segment.answers, new_answers)
        tokens = joined(segment.tokens, self.attention.keys_and_values(x))
        standing = self.attention.keys_and_values(self.standing(x))
        key, value = joined(joined(standing, answers), tokens)
        y = attend(
            self.attention.queries(x),
            key,
            value,
            attn_mask=self.visible(segment.place, x.shape[1]).to(x.device),
        )
        y = merge_heads(y)
        learnt, memory = self.memory(y, memory)
        place = segment.place + x.shape[1]
        full = place == self.segment
        segment = self.opened(memory, x) if full else Segment(answers, tokens, segment.asked, place)
        return self.gated(y, learnt), segment, memory

    def visible(self, place: int, length: int) -> Bool[Tensor, "length M"]:
        """Persistent tokens for all; of the segment's answers and tokens those up to one's own."""
        own = torch.ones(length, place + length, dtype=torch.bool).tril(place)
        always = torch.ones(length, len(self.persistent), dtype=torch.bool)
        return torch.cat((always, own, own), dim=1)

    def opened(self, memory: MemoryState, x: Tensor) -> Segment:
        """A segment without tokens, which asks the memory as it is now."""
        nothing = self.attention.keys_and_values(x[:, :0])
        return Segment(nothing, nothing, memory, 0)


def begun(memory: LearnedMemory, standing: Float[Tensor, "batch P width"]) -> MemoryState:
    """The memory in front of the stream: the persistent tokens are written first."""
    return memory(standing)[1]


def joined(first: KeysAndValues, second: KeysAndValues) -> KeysAndValues:
    """Keys behind keys, values behind values."""
    return tuple(torch.cat(pair, dim=2) for pair in zip(first, second, strict=True))
