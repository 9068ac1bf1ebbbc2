"""TTT-linear as layers on tokens: the inner rate and the first model are learnt outside."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from attnlib.checks import check_count
from attnlib.memory.matrix_state import arithmetic_of
from attnlib.memory.normed_training import ttt_normed_chunked
from attnlib.memory.test_time_training import TTTState, ttt_linear_chunked
from attnlib.models.state_layer import StateLayer, gate


class TTTLayer(StateLayer):
    r"""A linear model trained on the tokens, with a rate made of the token: 2 sigmoid(w . x) / b.

    Queries and keys are unit vectors, so with mini-batches of b = `mini_batch` tokens no rate is
    unstable. The model before the first token is a parameter, zero to begin. Two optimizations run
    at once: the inner one learns pairs while it reads, the outer one learns projections, rate and
    start from many sequences, through the inner one.
    Arguments and shapes as in `StateLayer`. The state is 2 H D E numbers.
    Source: Sun et al. (2024), sections 2.3, 2.4 and 2.7; their rate is eta sigmoid(w . x).
    """

    def __init__(self, width: int, heads: int, *, mini_batch: int = 16, **sizes):
        super().__init__(width, heads, **sizes)
        check_count("mini_batch", mini_batch, least=1)
        self.mini_batch = mini_batch
        self.to_rate = gate(width, heads, 0.0)
        self.first = nn.Parameter(torch.zeros(heads, self.key_width, self.value_width))

    def rate(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch H N"]:
        """The inner rate of each head at each token."""
        return 2 * self.to_rate(x).sigmoid().mT / self.mini_batch

    def begin(self, x: Float[Tensor, "batch N width"]) -> TTTState:
        """The model in front of the first token, for each sequence."""
        first = self.first.to(arithmetic_of(x.dtype)).expand(x.shape[0], -1, -1, -1)
        return TTTState(first, first, 0)

    def read(self, query, key, value, x):
        """What the model predicts for the queries, while it is trained on keys and values."""
        query, key = normalize(query, dim=-1), normalize(key, dim=-1)
        return ttt_linear_chunked(
            query,
            key,
            value,
            rate=self.rate(x),
            mini_batch=self.mini_batch,
            state=self.begin(x),
            scale=1.0,
        )[0]

    def state_numbers(self, length: int) -> int:
        """Two matrices for each head: the model now, and at the start of the mini-batch."""
        return 2 * self.heads * self.key_width * self.value_width


class NormedTTTLayer(TTTLayer):
    """The same with the model k + norm(k W), as the paper runs it; values are as wide as keys.

    The norm of each head has its own learnt weight and bias. It is scale-free, so its first model
    must not be zero: it is drawn small, with standard deviation 0.02.
    Source: Sun et al. (2024), section 2.7.
    """

    def __init__(self, width: int, heads: int, *, mini_batch: int = 16, **sizes):
        super().__init__(width, heads, mini_batch=mini_batch, **sizes)
        if self.key_width != self.value_width:
            raise ValueError(
                f"value_width must be key_width, {self.key_width}, got {self.value_width}"
            )
        nn.init.normal_(self.first, std=0.02)
        self.norm_weight = nn.Parameter(torch.ones(heads, 1, self.value_width))
        self.norm_bias = nn.Parameter(torch.zeros(heads, 1, self.value_width))

    def read(self, query, key, value, x):
        """What the model predicts for the queries, while it is trained on keys and values."""
        query, key = normalize(query, dim=-1), normalize(key, dim=-1)
        return ttt_normed_chunked(
            query,
            key,
            value,
            weight=self.norm_weight,
            bias=self.norm_bias,
            rate=self.rate(x),
            mini_batch=self.mini_batch,
            state=self.begin(x),
        )[0]
