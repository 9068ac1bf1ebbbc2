"""Training that is looked at on the way: the same loop, with a probe every few steps."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.training import History, Objective, classification

OPTIMIZERS = ("adam", "sgd")


class Watched(NamedTuple):
    """The history of a training, the steps at which it was looked at, and what was seen there."""

    history: History
    steps: tuple[int, ...]
    seen: tuple[Any, ...]


def train_watched(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    optimizer: str = "adam",
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    warmup: int = 0,
    clip: float | None = 1.0,
    every: int = 20,
    watch: Callable[[nn.Module, int], Any] = lambda model, step: None,
    objective: Objective = classification,
    seed: int = 0,
) -> Watched:
    """Take `steps` steps at a constant learning rate and keep what `watch(model, step)` returns.

    `watch` is called before the first step, after every `every`-th and after the last one, with the
    model in evaluation mode and without gradients; step counts the steps taken so far. `optimizer`
    is "adam" (AdamW, betas 0.9 and 0.98) or "sgd" (momentum 0.9). The learning rate rises over
    `warmup` steps; gradients longer than `clip` are cut to that length, unless it is None.
    `objective` and `seed` as in `train`.
    Raises ValueError for an unknown optimizer, if the batches end too soon or the loss is not
    finite.
    """
    check_count("steps", steps, least=1)
    check_count("every", every, least=1)
    check_count("warmup", warmup)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    stepper = _optimizer(model, optimizer, learning_rate, weight_decay)
    losses, accuracies, looked, seen = [], [], [], []

    def look(step: int) -> None:
        model.eval()
        with torch.no_grad():
            seen.append(watch(model, step))
        looked.append(step)
        model.train()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        look(0)
        for step, batch in enumerate(islice(batches, steps), start=1):
            loss, accuracy = objective(model, batch)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the loss must stay finite, got {float(loss)} at step {step}: "
                    "lower learning_rate or clip"
                )
            for group in stepper.param_groups:
                group["lr"] = learning_rate * min(1.0, step / max(1, warmup))
            stepper.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            stepper.step()
            losses.append(loss.item())
            accuracies.append(float(accuracy))
            if step % every == 0 or step == steps:
                look(step)
    if len(losses) < steps:
        raise ValueError(f"batches must last for steps = {steps}, got {len(losses)}")
    history = History(torch.tensor(losses), torch.tensor(accuracies))
    return Watched(history, tuple(looked), tuple(seen))


def _optimizer(
    model: nn.Module, name: str, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay
        )
    return torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay
    )
