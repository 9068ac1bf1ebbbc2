"""A memory that learns at test time, with learnt projections, rates and first weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from attnlib.checks import check_count
from attnlib.memory.inner_models import start_weights
from attnlib.memory.linear_memory import linear_memory_chunked, linear_memory_read
from attnlib.memory.matrix_state import arithmetic_of
from attnlib.memory.neural_memory import (
    MemoryState,
    deep_memory_chunked,
    memory_read,
    state_before,
)
from attnlib.models.attention_layer import check_divides, projection
from attnlib.models.state_layer import gate
from attnlib.read.heads import merge_heads, split_heads

HIDDEN_SHARE = 0.36
"""How much of a hidden unit is left on average: E silu(z)^2 for normal z is about 0.36."""


class LearnedMemory(nn.Module):
    r"""Titans' neural memory on tokens: every token is a pair to learn and a question to ask.

    .. math:: q, k, v = W^Q y,\ W^K x,\ W^V x, \qquad
              \theta, \eta, \alpha = \text{gates of } x, \qquad o = \mathrm{norm}(M(q))

    x is what is written and y what asks; queries and keys are made unit vectors. `depth` is the
    number of matrices: 1 learns token by token (`linear_memory`), more learn in mini-batches of
    `mini_batch` (`neural_memory`) with hidden width `expansion` D. The weights before the first
    token are parameters. The gates: eta = sigmoid, alpha = sigmoid (starting near 0.01) and

    .. math:: \theta = (1 - \eta)\, \mathrm{sigmoid}(w \cdot x) / c

    so that all of a gradient that is ever added, theta / (1 - eta), is at most 1 / c: c is the
    curvature for unit keys, 1 for one matrix, else 0.36 R `mini_batch` for R hidden units. This
    bound of the rate is ours; the paper leaves the range of its gates open. With depth above 1 and
    streams of thousands of tokens alpha must be learnt small: see `deep_memory_recurrent`.
    Shapes: tokens (batch, N, width); the state is a MemoryState whose size never changes.
    Source: Behrouz et al. (2025), section 3.1, without residuals; the gates by head, not channel.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        depth: int = 1,
        mini_batch: int = 16,
        expansion: int = 2,
    ):
        super().__init__()
        check_divides("heads", heads, "width", width)
        check_count("depth", depth, least=1)
        check_count("mini_batch", mini_batch, least=1)
        check_count("expansion", expansion, least=1)
        self.heads, self.depth, self.mini_batch = heads, depth, mini_batch
        size = width // heads
        hidden = (expansion * size,) * (depth - 1)
        self.curvature = HIDDEN_SHARE * hidden[-1] * mini_batch if hidden else 1.0
        self.to_query, self.to_key = projection(width, width), projection(width, width)
        self.to_value = projection(width, width)
        self.to_theta, self.to_eta = gate(width, heads, 0.0), gate(width, heads, 0.0)
        self.to_alpha = gate(width, heads, -4.6)
        generator = torch.Generator().manual_seed(0)
        drawn = start_weights(size, hidden, size, generator=generator, dtype=torch.float32)
        self.first = nn.ParameterList(w.expand(heads, -1, -1).clone() for w in drawn)
        self.norm = nn.RMSNorm(size, eps=1e-5)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        state: MemoryState | None = None,
        *,
        asking: Float[Tensor, "batch N width"] | None = None,
    ) -> tuple[Float[Tensor, "batch N width"], MemoryState]:
        """(reads, new state): token t is written, then asked; `asking` asks in its place."""
        query = self.queries(x if asking is None else asking)
        key = normalize(self.split(self.to_key(x)), dim=-1)
        value = self.split(self.to_value(x))
        theta, eta, alpha = self.rates(x)
        given = {"theta": theta, "eta": eta, "alpha": alpha}
        state = self.before(x) if state is None else state
        if self.depth == 1:
            read, state = linear_memory_chunked(
                query, key, value, **given, state=state, scale=1.0, chunk=32
            )
        else:
            weights = state.memory
            read, state = deep_memory_chunked(
                query,
                key,
                value,
                **given,
                weights=weights,
                state=state,
                mini_batch=self.mini_batch,
            )
        return merge_heads(self.norm(read)), state

    def read(
        self, x: Float[Tensor, "batch N width"], state: MemoryState | None
    ) -> Float[Tensor, "batch N width"]:
        """What the memory answers to the tokens, writing nothing; None asks the first weights."""
        state = self.before(x) if state is None else state
        asked = linear_memory_read if self.depth == 1 else memory_read
        return merge_heads(self.norm(asked(state, self.queries(x))))

    def rates(self, x: Float[Tensor, "batch N width"]) -> tuple[Tensor, Tensor, Tensor]:
        """theta, eta and alpha of each head at each token, (batch, heads, N)."""
        eta, alpha = self.to_eta(x).sigmoid().mT, self.to_alpha(x).sigmoid().mT
        theta = (1 - eta) * self.to_theta(x).sigmoid().mT / self.curvature
        return theta, eta, alpha

    def queries(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch H N D"]:
        """Queries of unit length."""
        return normalize(self.split(self.to_query(x)), dim=-1)

    def split(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch H N D"]:
        """One part of the width for each head."""
        return split_heads(x, self.heads)

    def before(self, x: Float[Tensor, "batch N width"]) -> MemoryState:
        """The state in front of the first token: the learnt weights."""
        sums = arithmetic_of(x.dtype)
        weights = tuple(w.to(sums).expand(x.shape[0], -1, -1, -1) for w in self.first)
        state = state_before(weights)
        if self.depth > 1:
            return state
        return MemoryState(state.memory[0], state.momentum[0], state.anchor[0], 0)

    def state_numbers(self) -> int:
        """How many numbers memory, momentum and anchor are, for one sequence."""
        return 3 * sum(w.numel() for w in self.first)
