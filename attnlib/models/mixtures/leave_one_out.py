"""A mixture of experts that are all heads but one, trained in two alternating blocks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.multi_head import MultiHeadAttention, read_weights, rotate_all
from attnlib.read.heads import merge_heads, repeat_key_heads, split_heads
from attnlib.read.leave_one_out import all_but_one_gates
from attnlib.training import Objective, classification, learning_rate_factor


class MixtureOfAllButOne(MultiHeadAttention):
    r"""Multi-head attention whose expert i is the sum of all heads but head i.

    .. math:: y = \sum_i g_i(x) \frac{H}{H-1} \sum_{j \neq i} y_j, \qquad
              g(x) = \mathrm{softmax}(W_2 \tanh(W_1 \bar x))

    y_j is head j with its output projection. The mean of the tokens is over the whole sequence, or,
    in a causal layer, over the tokens so far. W_2 starts at zero, so a new layer is multi-head
    attention exactly. Inside `sampled_experts(model)` one expert is drawn for each example from its
    gates, in place of the mixture.

    Arguments and shapes as in `MultiHeadAttention`; `hidden` is the width inside the gate, `width`
    unless given. Cost: that of multi-head attention, and N width hidden for the gate.
    Raises ValueError for fewer than two heads. Source: Peng et al. (2020).
    """

    def __init__(self, width: int, heads: int, *, hidden: int | None = None, **options):
        super().__init__(width, heads, **options)
        if heads < 2:
            raise ValueError(f"heads must be at least 2 to leave one out, got {heads}")
        hidden = width if hidden is None else hidden
        check_count("hidden", hidden, least=1)
        self.to_gates = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, heads))
        nn.init.zeros_(self.to_gates[-1].weight)
        nn.init.zeros_(self.to_gates[-1].bias)
        self.sampled = False

    def gates(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N H"]:
        """g: how far each token trusts each expert; rows sum to one."""
        mean = running_mean(x) if self.is_causal else x.mean(1, keepdim=True).expand_as(x)
        return self.to_gates(mean).softmax(-1)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        context: Float[Tensor, "batch M width"] | None = None,
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The mixture of the experts; with `return_weights` also (batch, heads, N, M)."""
        context = x if context is None else context
        query = split_heads(self.to_query(x), self.heads)
        key = split_heads(self.to_key(context), self.key_heads)
        value = split_heads(self.to_value(context), self.key_heads)
        key, value = repeat_key_heads(query, key, value)
        if self.position == "rope":
            query, key = rotate_all(query), rotate_all(key)

        expert_gates = self.gates(x)
        if self.sampled:
            expert_gates = one_drawn(expert_gates)
        head_gates = all_but_one_gates(expert_gates).mT[..., None]
        options = self.options(attn_mask)
        out = self.to_output(merge_heads(head_gates * self.operator(query, key, value, **options)))
        if return_weights:
            return out, read_weights(self.operator, query, key, **options)
        return out


def all_but_one_of(
    attention: MultiHeadAttention, *, hidden: int | None = None, seed: int = 0
) -> MixtureOfAllButOne:
    """The mixture with the heads of a trained layer, which it equals until its gate has learnt.

    Raises TypeError for a layer of another kind.
    """
    if not isinstance(attention, MultiHeadAttention):
        raise TypeError(f"attention must be a MultiHeadAttention, got {type(attention).__name__}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixture = MixtureOfAllButOne(
            attention.to_query.in_features,
            attention.heads,
            hidden=hidden,
            operator=attention.operator,
            position=attention.position,
            key_heads=attention.key_heads,
            is_causal=attention.is_causal,
        )
    mixture.to(attention.to_query.weight)
    if attention.position == "relative":
        mixture.distance_bias = nn.Parameter(torch.empty_like(attention.distance_bias))
    mixture.load_state_dict(attention.state_dict(), strict=False)
    return mixture


def running_mean(x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
    """The mean of the tokens so far, at each token."""
    counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    return x.cumsum(1) / counts[:, None]


def one_drawn(gates: Float[Tensor, "batch N H"]) -> Float[Tensor, "batch N H"]:
    """One expert a token, with the chance of its gate: a row of zeros and a single one.

    Each example draws one number u in [0, 1), and each token takes the expert in whose share of
    [0, 1) u falls: tokens that trust alike take the same expert.
    """
    batch, _, heads = gates.shape
    u = torch.rand(batch, 1, 1, dtype=gates.dtype, device=gates.device)
    chosen = (gates.detach().cumsum(-1) <= u).sum(-1).clamp(max=heads - 1)
    return nn.functional.one_hot(chosen, heads).to(gates)


def mixtures_of(model: nn.Module) -> list[MixtureOfAllButOne]:
    """All such layers of a model. Raises ValueError where there is none."""
    layers = [layer for layer in model.modules() if isinstance(layer, MixtureOfAllButOne)]
    if not layers:
        raise ValueError("model must hold at least one MixtureOfAllButOne, got none")
    return layers


@contextmanager
def sampled_experts(model: nn.Module) -> Iterator[None]:
    """Inside, every mixture of the model draws one expert; afterwards all is as it was."""
    layers = mixtures_of(model)
    before = [layer.sampled for layer in layers]
    try:
        for layer in layers:
            layer.sampled = True
        yield
    finally:
        for layer, sampled in zip(layers, before, strict=True):
            layer.sampled = sampled


class BlockHistory(NamedTuple):
    """The losses of the gate steps (whole mixtures) and of the expert steps (single experts)."""

    gate: Float[Tensor, " gate_steps"]
    expert: Float[Tensor, " expert_steps"]


def train_in_blocks(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    gate_every: int = 5,
    learning_rate: float = 3e-3,
    warmup: int = 50,
    clip: float = 1.0,
    objective: Objective = classification,
    seed: int = 0,
) -> BlockHistory:
    """Block coordinate descent: the experts with the gate fixed, then the gate with them fixed.

    Every `gate_every`-th of the `steps` is a **gate step**: the whole mixture is computed and only
    the gates move. All others are **expert steps**: one expert is drawn for each example and
    everything but the gates moves. Each block has an AdamW of its own; the learning rate rises and
    falls as in `attnlib.training.train`. The paper alternates whole epochs, a gate epoch after four
    expert epochs at least; ours alternates batches.
    Raises ValueError if the model has no mixture, the batches end or the loss is not finite.
    Source: Peng et al. (2020); the turns are our form of theirs.
    """
    for name, number, least in (("steps", steps, 1), ("gate_every", gate_every, 2)):
        check_count(name, number, least=least)
    gate = [parameter for layer in mixtures_of(model) for parameter in layer.to_gates.parameters()]
    in_gate = {id(parameter) for parameter in gate}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_gate]
    moves = {"gate": _AdamW(gate, learning_rate), "expert": _AdamW(rest, learning_rate)}
    losses = {"gate": [], "expert": []}
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        step = -1
        for step, batch in enumerate(islice(batches, steps)):
            rate = learning_rate * learning_rate_factor(step, steps, warmup)
            block = "gate" if step % gate_every == gate_every - 1 else "expert"
            loss = _block_loss(model, batch, block, objective)
            if not torch.isfinite(loss):
                raise ValueError(f"the loss must stay finite, got {float(loss)} at step {step}")
            moves[block].step(loss, rate, clip)
            losses[block].append(loss.item())
    if step + 1 < steps:
        raise ValueError(f"batches must last for steps = {steps}, got {step + 1}")
    return BlockHistory(torch.tensor(losses["gate"]), torch.tensor(losses["expert"]))


def _block_loss(model: nn.Module, batch: Any, block: str, objective: Objective) -> Tensor:
    if block == "gate":
        return objective(model, batch)[0]
    with sampled_experts(model):
        return objective(model, batch)[0]


class _AdamW:
    """Moves one block of parameters; the gradients of the others are never made."""

    def __init__(self, parameters: list[nn.Parameter], learning_rate: float):
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )

    def step(self, loss: Tensor, rate: float, clip: float) -> None:
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        used = [parameter for parameter in self.parameters if parameter.grad is not None]
        nn.utils.clip_grad_norm_(used, clip)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()


class ExpertUse(NamedTuple):
    """Entropies (nats) of the gates, and the share of the most trusted expert.

    `conditional` is the mean entropy of a row, `marginal` the entropy of the mean row; their
    difference is the information between token and expert. A gate that ignores its input has
    conditional = marginal; a collapsed one has marginal near 0 and `largest` near 1.
    """

    conditional: float
    marginal: float
    largest: float

    @property
    def information(self) -> float:
        """What the token tells of its expert, in nats."""
        return self.marginal - self.conditional


def expert_use(gates: Float[Tensor, "*batch H"]) -> ExpertUse:
    """How a gate uses its experts, over all the rows given. Raises ValueError for no rows."""
    if gates.dim() < 2 or not gates.numel():
        raise ValueError(
            f"gates must have shape (..., rows, H) with at least one row, got {tuple(gates.shape)}"
        )
    rows = gates.flatten(0, -2)
    mean = rows.mean(0)
    conditional = torch.special.entr(rows).sum(-1).mean()
    return ExpertUse(float(conditional), float(torch.special.entr(mean).sum()), float(mean.max()))


@torch.no_grad()
def watch_gates(model: nn.Module, inputs: Any) -> Float[Tensor, "layers batch N H"]:
    """The gates on the experts of every mixture of the model on one batch of inputs."""
    seen, layers = [], mixtures_of(model)
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, arguments: seen.append(layer.gates(arguments[0]))
        )
        for layer in layers
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen)
