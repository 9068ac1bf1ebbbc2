"""One form for all: a linear system whose matrices change from token to token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_attention, check_scale
from attnlib.memory.decay import Decay, expanded_decay
from attnlib.memory.decayed_state import scale_of
from attnlib.memory.matrix_state import check_recurrent
from attnlib.memory.state_space_duality import Rate, Step, discretized
from attnlib.weight.softmax import softmax


class System(NamedTuple):
    r"""The matrices of h_i = \Lambda_i h_{i-1} + B_i u_i, y_i = C_i h_i + D_i u_i.

    One matrix a token in each list; the length of the state may change from token to token.
    """

    transition: Sequence[Float[Tensor, "*heads state before"]]
    """Lambda_i: from the state before the token to the state after it."""
    write: Sequence[Float[Tensor, "*heads state E"]]
    """B_i: from the input to the state."""
    read: Sequence[Float[Tensor, "*heads E state"]]
    """C_i: from the state to the output."""
    skip: Sequence[Float[Tensor, "*heads E E"]] | None = None
    """D_i: from the input to the output; None for zero."""

    @property
    def state_sizes(self) -> list[int]:
        """How many numbers the state holds after each token."""
        return [matrix.shape[-2] for matrix in self.write]


def dynamical_system(
    system: System, inputs: Float[Tensor, "*heads N E"]
) -> Float[Tensor, "*heads N E"]:
    r"""Run a linear system: h_i = \Lambda_i h_{i-1} + B_i u_i, y_i = C_i h_i + D_i u_i.

    The state begins empty or at zero. Shapes: inputs (..., N, E) -> outputs (..., N, E).
    Cost: time and memory of the matrices; this is the form to compare mechanisms in, not to run
    them. Raises ValueError where the lists have not one matrix a token or sizes do not fit.
    Source: Sieber et al. (2024). Derived in chapter 3.2.
    """
    length = inputs.shape[-2]
    for name, matrices in zip(System._fields, system, strict=True):
        if matrices is not None and len(matrices) != length:
            raise ValueError(
                f"system.{name} must have one matrix for each of {length} inputs, "
                f"got {len(matrices)}"
            )
    if length == 0:
        return inputs
    before = system.transition[0].shape[-1]
    state = inputs.new_zeros(*inputs.shape[:-2], before, 1)
    outputs = []
    for i in range(length):
        transition, given = system.transition[i], inputs[..., i, :, None]
        if transition.shape[-1] != state.shape[-2]:
            raise ValueError(
                f"system.transition[{i}] must take a state of {state.shape[-2]} numbers, "
                f"got shape {tuple(transition.shape)}"
            )
        state = transition @ state + system.write[i] @ given
        output = system.read[i] @ state
        if system.skip is not None:
            output = output + system.skip[i] @ given
        outputs.append(output.squeeze(-1))
    return torch.stack(outputs, dim=-2)


def softmax_attention_system(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    scale: float | None = None,
) -> System:
    r"""Causal softmax attention: the state keeps every value, so it grows by E numbers a token.

    .. math:: \Lambda_i = \begin{pmatrix} I \\ 0 \end{pmatrix}, \;
              B_i = \begin{pmatrix} 0 \\ I \end{pmatrix}, \;
              C_i = (w_{i1} I \; \cdots \; w_{ii} I)

    where w_i is the softmax of row i. The inputs u are the values.
    """
    check_recurrent(query, key, value)
    check_scale(scale)
    length, width = value.shape[-2:]
    scores = scale_of(scale, query) * query @ key.mT
    past = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    weights = softmax(scores, past.expand_as(scores))
    one = torch.eye(width, dtype=value.dtype, device=value.device)
    transition, write, read = [], [], []
    for i in range(length):
        grown = torch.eye((i + 1) * width, dtype=value.dtype, device=value.device)
        transition.append(grown[:, : i * width])
        write.append(grown[:, i * width :])
        blocks = weights[..., i, : i + 1, None, None] * one  # (..., i + 1, E, E)
        read.append(blocks.transpose(-3, -2).flatten(-2))
    return System(transition, write, read)


def linear_attention_system(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
) -> System:
    r"""Causal normalized linear attention: the normalizer stands in the transition.

    .. math:: \Lambda_i = \frac{\eta_{i-1}}{\eta_i} I, \; B_i = \frac{1}{\eta_i} k_i \otimes I, \;
              C_i = q_i^\top \otimes I, \; \eta_i = q_i \cdot \sum_{j \le i} k_j

    for queries and keys that are features already, with q_i . k_j > 0. Source: Sieber et al.
    (2024).
    """
    check_attention(query, key, value)
    total = (query * key.cumsum(-2)).sum(-1)
    if not (total > 0).all():
        raise ValueError(
            "query and key must be features with positive products, so that every sum of weights "
            f"is positive, got {total.min().item():.3g}"
        )
    before = torch.cat((torch.zeros_like(total[..., :1]), total[..., :-1]), dim=-1)
    return matrix_state_system(
        query, key / total.unsqueeze(-1), value, decay=(before / total).unsqueeze(-1)
    )


def gated_rnn_system(
    decay: Float[Tensor, "*heads N E"],
    gain: Float[Tensor, "*heads N E"],
    output_gate: Float[Tensor, "*heads N E"] | None = None,
) -> System:
    r"""A gated linear recurrent network: h_i = a_i * h_{i-1} + b_i * u_i, y_i = g_i * h_i.

    All three matrices are diagonal, and channel c of the input meets channel c of the state alone:
    a state of E numbers where attention has D E. HGRN, the RG-LRU and the qLSTM are of this form.
    """
    gate = torch.ones_like(decay) if output_gate is None else output_gate
    return System(
        *(list(torch.diag_embed(numbers).unbind(-3)) for numbers in (decay, gain, gate)),
    )


def selective_system(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    step: Step,
    rate: Rate = 1.0,
    scale: float | None = None,
) -> System:
    r"""A selective state space with a scalar rate (`state_space_duality`) in this form.

    .. math:: \Lambda_i = e^{-\Delta_i A} I, \; B_i = \Delta_i k_i \otimes I, \;
              C_i = \mathrm{scale} \, q_i^\top \otimes I
    """
    check_recurrent(query, key, value)
    check_scale(scale)
    ones = torch.ones_like(value[..., :1])
    steps, log_decay = discretized(ones, step, rate)
    return matrix_state_system(
        scale_of(scale, query) * query, key * steps, value, decay=log_decay.exp().unsqueeze(-1)
    )


def decayed_attention_system(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    log_decay: Decay = None,
    scale: float | None = None,
) -> System:
    """`decayed_attention` in this form: lightning attention, retention, gates, HGRN-2, Mamba-2."""
    check_recurrent(query, key, value)
    check_scale(scale)
    decay = expanded_decay(log_decay, query)
    decay = torch.ones_like(query) if decay is None else decay.to(query.dtype).exp()
    return matrix_state_system(scale_of(scale, query) * query, key, value, decay=decay)


def matrix_state_system(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    decay: Float[Tensor, "*heads N #D"],
) -> System:
    """diag(a) S + k v^T, S^T q on a state of D rows of E numbers, laid out as one long vector."""
    one = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    rows = decay.expand(query.shape).repeat_interleave(value.shape[-1], dim=-1)
    transition = torch.diag_embed(rows)
    write = torch.einsum("...nd,ef->...ndef", key, one).flatten(-3, -2)
    read = torch.einsum("...nd,ef->...nedf", query, one).flatten(-2)
    return System(*(list(matrix.unbind(-3)) for matrix in (transition, write, read)))
