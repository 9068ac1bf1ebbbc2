"""One step of Titans' memory in chapter 7.2: the program, and the puzzle of its five bugs."""

import torch
from torch import Tensor

from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# ---- 7.2.3 one step of the memory of Titans


def step_inputs(seed: int = 723) -> list[Tensor]:
    """memory, momentum, key, value and three gates for three heads; D = 4, E = 2."""
    *tensors, gates = random(seed, (3, 4, 2), (3, 4, 2), (3, 4), (3, 2), (3, 3))
    return [*tensors, *gates.sigmoid()]


def _stepped(
    memory,
    momentum,
    key,
    value,
    theta,
    eta,
    alpha,
    *,
    at="old",
    factor=1.0,
    sign=-1.0,
    momentum_kept=True,
    momentum_faded=False,
    forgetting=True,
    momentum_in_memory=True,
):
    """One step, and the ways in which it goes wrong."""
    theta, eta, alpha = (gate[:, None, None] for gate in (theta, eta, alpha))
    faded = (1 - alpha) * memory if forgetting else memory
    asked = {"old": memory, "faded": faded, "nothing": 0 * memory}[at]
    error = (key[:, None] @ asked)[:, 0] - value
    gradient = factor * key[:, :, None] * error[:, None, :]
    carried = eta * momentum if momentum_kept else 0 * momentum
    if momentum_faded:
        carried = (1 - alpha) * carried
    new = carried + sign * theta * gradient
    return faded + (new if momentum_in_memory else sign * theta * gradient), new


MISTAKES = {
    "the gradient is taken at the memory that has faded; take it at the old one": {"at": "faded"},
    "there is no error: ask the memory for the key, and subtract the value": {"at": "nothing"},
    "the sign: the memory walks against the gradient": {"sign": 1.0},
    "the factor 2 of the square: the loss is half of it, theta absorbs the rest": {"factor": 2.0},
    "the old momentum is lost: S' = eta S - theta gradient": {"momentum_kept": False},
    "the momentum fades too: alpha acts on the memory alone": {"momentum_faded": True},
    "nothing is forgotten: the old memory is multiplied by 1 - alpha": {"forgetting": False},
    "the memory takes the gradient alone: it is the momentum that is added": {
        "momentum_in_memory": False
    },
}


@checker("7.2.3")
def one_step(answer) -> str:
    """S' = eta S - theta k (k^T M - v^T), M' = (1 - alpha) M + S', for every head."""
    inputs = step_inputs()
    result = call(answer, *inputs)
    require(
        isinstance(result, tuple | list) and len(result) == 2,
        f"return the new memory and the new momentum, got {type(result).__name__}",
    )
    memory, momentum = (
        tensor_of(part, (3, 4, 2), name)
        for part, name in zip(result, ("the memory", "the momentum"), strict=True)
    )
    right = _stepped(*inputs)
    require(
        not (close(memory, right[1]) and close(momentum, right[0])),
        "the two are exchanged: the memory comes first",
    )
    for name, mistake in MISTAKES.items():
        wrong = _stepped(*inputs, **mistake)
        require(not (close(memory, wrong[0]) and close(momentum, wrong[1])), name)
    *tensors, theta, eta, alpha = inputs
    of_first = (gate[:1].expand(3) for gate in (theta, eta, alpha))
    wrong = _stepped(*tensors, *of_first)
    require(
        not (close(memory, wrong[0]) and close(momentum, wrong[1])),
        "all heads use the gates of the first: theta[:, None, None], not theta[0]",
    )
    wrong = _stepped(*tensors, theta, alpha, eta)
    require(
        not (close(memory, wrong[0]) and close(momentum, wrong[1])),
        "eta and alpha are exchanged: eta keeps the momentum, alpha forgets the memory",
    )
    require(close(momentum, right[1]), "the momentum is wrong: S' = eta S - theta k (k^T M - v^T)")
    require(close(memory, right[0]), "the momentum is right, the memory is not: (1 - alpha) M + S'")
    return "Three heads with gates of their own; what came is as it was."


@solution("7.2.3")
def surprise_step(memory, momentum, key, value, theta, eta, alpha):
    return _stepped(memory, momentum, key, value, theta, eta, alpha)


mutant("7.2.3", "at the memory that has faded", "faded first")(
    lambda *given: _stepped(*given, at="faded")
)
mutant("7.2.3", "there is no error", "Hebb")(lambda *given: _stepped(*given, at="nothing"))
mutant("7.2.3", "against the gradient", "uphill")(lambda *given: _stepped(*given, sign=1.0))
mutant("7.2.3", "the factor 2", "whole square")(lambda *given: _stepped(*given, factor=2.0))
mutant("7.2.3", "the old momentum is lost", "no momentum")(
    lambda *given: _stepped(*given, momentum_kept=False)
)
mutant("7.2.3", "the momentum fades too", "momentum fades")(
    lambda *given: _stepped(*given, momentum_faded=True)
)
mutant("7.2.3", "nothing is forgotten", "no forgetting")(
    lambda *given: _stepped(*given, forgetting=False)
)
mutant("7.2.3", "the gradient alone", "momentum unused")(
    lambda *given: _stepped(*given, momentum_in_memory=False)
)
mutant("7.2.3", "the memory comes first", "exchanged")(lambda *given: _stepped(*given)[::-1])
mutant("7.2.3", "got Tensor", "memory alone")(lambda *given: _stepped(*given)[0])


@mutant("7.2.3", "the gates of the first")
def gates_of_the_first_head(memory, momentum, key, value, theta, eta, alpha):
    gates = (gate[:1].expand_as(gate) for gate in (theta, eta, alpha))
    return _stepped(memory, momentum, key, value, *gates)


@mutant("7.2.3", "eta and alpha are exchanged")
def gates_exchanged(memory, momentum, key, value, theta, eta, alpha):
    return _stepped(memory, momentum, key, value, theta, alpha, eta)


@mutant("7.2.3", "changes its input")
def in_place(memory, momentum, key, value, theta, eta, alpha):
    new = _stepped(memory, momentum, key, value, theta, eta, alpha)
    memory.copy_(new[0])
    return memory, new[1]


# ---- 7.2.6 a property that exposes five bugs


def _in_another_order(memory, momentum, key, value, theta, eta, alpha):
    theta, eta, alpha = (gate[:, None, None] for gate in (theta, eta, alpha))
    write = theta * key[:, :, None] * value[:, None, :]
    momentum = write - theta * key[:, :, None] * (key[:, None] @ memory) + eta * momentum
    return momentum + memory - alpha * memory, momentum


def _in_place(memory, momentum, key, value, theta, eta, alpha):
    new = _stepped(memory, momentum, key, value, theta, eta, alpha)
    memory.copy_(new[0])
    momentum.copy_(new[1])
    return memory, momentum


def _rate_of_the_first_head(memory, momentum, key, value, theta, eta, alpha):
    return _stepped(memory, momentum, key, value, theta[:1].expand_as(theta), eta, alpha)


RIGHT_STEPS = {
    "the plain one": _stepped,
    "one that adds in another order (compare with a tolerance, not exactly)": _in_another_order,
}
BUGS = {
    "it does not keep its momentum": lambda *given: _stepped(*given, momentum_kept=False),
    "it takes the gradient at the memory that has faded": lambda *given: _stepped(
        *given, at="faded"
    ),
    "its momentum is forgotten too": lambda *given: _stepped(*given, momentum_faded=True),
    "it changes the state that it was given": _in_place,
    "all heads use the first head's rate": _rate_of_the_first_head,
}


@checker("7.2.6")
def property_that_exposes_five_bugs(answer) -> str:
    """A function step -> bool: True for right memories, False for five that are wrong."""
    for name, step in RIGHT_STEPS.items():
        require(_verdict(answer, step), f"your property rejects a right memory: {name}")
    for name, step in BUGS.items():
        require(not _verdict(answer, step), f"your property accepts a memory with a bug: {name}")
    return "Two right memories pass, five bugs do not."


def _verdict(answer, step) -> bool:
    def unnamed(memory, momentum, key, value, theta, eta, alpha):
        return step(memory, momentum, key, value, theta, eta, alpha)

    verdict = call(answer, unnamed)
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    require(isinstance(verdict, bool), f"return True or False, got {type(verdict).__name__}")
    return verdict


def _compared(step, inputs: list[Tensor], *, kept: bool = True) -> bool:
    """Whether a step gives what it should, and leaves what it was given."""
    memory, momentum, *rest = inputs
    given = memory.clone(), momentum.clone()
    new = step(*given, *rest)
    right = _stepped(*inputs)
    same = all(torch.allclose(a, b) for a, b in zip(new, right, strict=True))
    left = torch.equal(given[0], memory) and torch.equal(given[1], momentum)
    return same and (left or not kept)


@solution("7.2.6")
def one_step_tells(step) -> bool:
    """A memory and a momentum that are not zero, gates that differ, and a look at what came."""
    return _compared(step, step_inputs(726))


@mutant("7.2.6", "rejects a right memory: the plain one")
def always_false(step):
    return False


@mutant("7.2.6", "with a tolerance")
def exactly_equal(step):
    inputs = [x.float() / 3 for x in step_inputs(726)]
    return all(torch.equal(a, b) for a, b in zip(step(*inputs), _stepped(*inputs), strict=True))


@mutant("7.2.6", "does not keep its momentum")
def momentum_of_zero(step):
    memory, momentum, *rest = step_inputs(726)
    return _compared(step, [memory, 0 * momentum, *rest])


@mutant("7.2.6", "at the memory that has faded")
def an_empty_memory(step):
    memory, *rest = step_inputs(726)
    return _compared(step, [0 * memory, *rest])


@mutant("7.2.6", "its momentum is forgotten too")
def looks_at_the_gradient_alone(step):
    memory, momentum, *rest = step_inputs(726)
    first = _compared(step, [memory, 0 * momentum, *rest])
    *others, alpha = step_inputs(726)
    return first and _compared(step, [*others, 0 * alpha])


@mutant("7.2.6", "changes the state that it was given")
def only_what_is_new(step):
    return _compared(step, step_inputs(726), kept=False)


@mutant("7.2.6", "the first head's rate")
def one_rate_for_all(step):
    *tensors, theta, eta, alpha = step_inputs(726)
    return _compared(step, [*tensors, theta[:1].expand(3), eta, alpha])


@mutant("7.2.6", "return True or False, got Tensor")
def not_a_bool(step):
    inputs = step_inputs(726)
    return step(*inputs)[0] == _stepped(*inputs)[0]
