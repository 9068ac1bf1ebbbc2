"""Training small models: one loop, one measure, and the same experiment over several seeds."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from attnlib.checks import check_count
from attnlib.tasks.task import IGNORE


class Measured(NamedTuple):
    """Mean loss (nats an answer) and accuracy."""

    loss: float
    accuracy: float


class History(NamedTuple):
    """Loss and accuracy of every training batch, before the step that it caused."""

    loss: Float[Tensor, " steps"]
    accuracy: Float[Tensor, " steps"]


Objective = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]


def classification(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of logits (..., classes), where a target is asked for.

    The batch begins with (inputs, targets); targets equal to IGNORE do not count.
    """
    inputs, targets = batch[0], batch[1]
    asked = targets != IGNORE
    logits, answers = model(inputs)[asked], targets[asked]
    accuracy = (logits.argmax(-1) == answers).float().mean()
    return cross_entropy(logits, answers), accuracy


def train(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.0,
    warmup: int = 50,
    clip: float = 1.0,
    objective: Objective = classification,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Take `steps` steps of AdamW, one for each batch, and return what was seen on the way.

    The learning rate rises over `warmup` steps and then falls as a cosine to zero; gradients longer
    than `clip` are cut to that length. `objective(model, batch)` gives (loss, accuracy). `seed`
    rules whatever the model itself draws (dropout, for instance). A progress bar is shown, except
    with progress=False or in a static build of the book (environment ATTN_STATIC=1).
    Raises ValueError if the batches end too soon or the loss is not finite.
    """
    check_count("steps", steps, least=1)
    check_count("warmup", warmup)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, warmup)
    )
    losses, accuracies = [], []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bar = tqdm(total=steps, disable=not progress or is_static_build(), leave=False)
        for batch in islice(batches, steps):
            loss, accuracy = objective(model, batch)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the loss must stay finite, got {float(loss)} at step {len(losses)}: "
                    "lower learning_rate or clip"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            accuracies.append(float(accuracy))
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}", accuracy=f"{accuracies[-1]:.2f}")
        bar.close()
    if len(losses) < steps:
        raise ValueError(f"batches must last for steps = {steps}, got {len(losses)}")
    return History(torch.tensor(losses), torch.tensor(accuracies))


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear rise over `warmup` steps, then half a cosine down to zero at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    count: int = 10,
    objective: Objective = classification,
) -> Measured:
    """Mean loss and accuracy over `count` batches (or all, if there are fewer)."""
    check_count("count", count, least=1)
    was_training = model.training
    model.eval()
    measured = [objective(model, batch) for batch in islice(batches, count)]
    model.train(was_training)
    if not measured:
        raise ValueError("batches must hold at least one batch, got none")
    loss, accuracy = (sum(float(part) for part in column) for column in zip(*measured, strict=True))
    return Measured(loss / len(measured), accuracy / len(measured))


def seeds_of(
    experiment: Callable[[int], Any], seeds: Sequence[int] = (0, 1, 2), *, progress: bool = True
) -> list[Any]:
    """The result of the same experiment for each seed, in their order."""
    shown = tqdm(seeds, "seeds", disable=not progress or is_static_build(), leave=False)
    return [experiment(seed) for seed in shown]


def is_static_build() -> bool:
    """Whether the book is being executed for its static pages, where nothing may flicker."""
    return os.environ.get("ATTN_STATIC") == "1"
