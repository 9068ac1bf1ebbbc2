"""The exercises of chapter 3.2, memories of fixed size, that are answered with numbers."""

import math

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 3.2.1 a fading state by hand

DECAY, KEYS, VALUES = 1 / 2, (1, 2, 1), (8, 1, 1)


@checker("3.2.1")
def fading_state_by_hand(answer) -> str:
    """States 8, 6, 4; the third read weighs the values by 1/4, 1, 1."""
    states, weights = numbers(answer, 6).view(2, 3).tolist()
    likely = (
        ((4, 4, 5 / 2), "the write fades at once: decay first, then add"),
        ((8, 10, 11), "nothing fades: the old state is halved before each write"),
        ((8, 5, 7 / 2), "the second value is written without its key, which is 2"),
        ((4, 3, 2), "the write fades at once and each state twice: decay once, then add"),
    )
    for wrong, message in likely:
        require(not close(states, wrong, 1e-3), f"states: {message}")
    require(close(states, (8, 6, 4), 1e-3), "states: S_t = S_(t-1) / 2 + k_t v_t, from S_0 = 0")
    likely = (
        ((1 / 8, 1 / 2, 1 / 2), "one factor too many: the token's own write has not faded yet"),
        ((1 / 2, 2, 1), "one factor too few: between token 1 and token 3 there are two decays"),
        ((1, 2, 1), "these are the keys alone; each fades with its age"),
        ((1 / 4, 1 / 2, 1), "these are the decays alone; each is multiplied by q_3 k_s"),
        ((1, 1, 1 / 4), "in the wrong order: the first value is the oldest"),
    )
    for wrong, message in likely:
        require(not close(weights, wrong, 1e-3), f"weights: {message}")
    require(
        close(weights, (1 / 4, 1, 1), 1e-3), "weights: token s of row 3 weighs a^(3 - s) q_3 k_s"
    )
    return "Both say that the third read is 4: the state, and the row of the matrix."


solution("3.2.1")((8, 6, 4, 1 / 4, 1, 1))
mutant("3.2.1", "the write fades at once: decay first", "late decay")((4, 4, 2.5, 0.25, 1, 1))
mutant("3.2.1", "nothing fades", "no decay")((8, 10, 11, 0.25, 1, 1))
mutant("3.2.1", "without its key", "values without keys")((8, 5, 3.5, 0.25, 1, 1))
mutant("3.2.1", "each state twice", "decay on both sides")((4, 3, 2, 0.25, 1, 1))
mutant("3.2.1", "one factor too many", "off by one")((8, 6, 4, 1 / 8, 1 / 2, 1 / 2))
mutant("3.2.1", "one factor too few", "off by one below")((8, 6, 4, 1 / 2, 2, 1))
mutant("3.2.1", "the keys alone", "no decay in the matrix")((8, 6, 4, 1, 2, 1))
mutant("3.2.1", "the decays alone", "no keys in the matrix")((8, 6, 4, 1 / 4, 1 / 2, 1))
mutant("3.2.1", "wrong order", "reversed row")((8, 6, 4, 1, 1, 1 / 4))

# ---- 3.2.2 the delta rule by hand


@checker("3.2.2")
def delta_rule_by_hand(answer) -> str:
    """Error 10, state (7, 4), answer to the first key 7, eigenvalues 1/2 and 1."""
    error, *state = numbers(answer, 6).tolist()
    state, kept, eigenvalues = state[:2], state[2], sorted(state[3:])
    likely = (
        (62 / 5, "that is the new value; what does the memory answer already?"),
        (5, "already times beta; hand in the error itself"),
        (-10, "the other sign: the new value minus the memory's answer"),
        (62 / 5 - 4, "the memory is asked for the second key, not for the first"),
    )
    for wrong, message in likely:
        require(not close(error, wrong, 1e-3), f"error: {message}")
    require(close(error, 10, 1e-3), "error: e = v_2 - S_1^T k_2")
    likely = (
        ((10, 8), "beta is missing: half of the error is written"),
        ((4 + 93 / 25, 124 / 25), "the whole value is written, not what is missing of it"),
        ((3, 4), "the old state is gone: the write is added to it"),
        ((8, 3), "the write goes along k_2 = (3/5, 4/5), in this order"),
    )
    for wrong, message in likely:
        require(not close(state, wrong, 1e-3), f"state: {message}")
    require(close(state, (7, 4), 1e-3), "state: S_2 = S_1 + beta k_2 e")
    require(
        not close(kept, 4, 1e-3),
        "answer to k_1: 4 was the answer before; k_2 is not at right angles to k_1",
    )
    require(close(kept, 7, 1e-3), "answer to k_1: it is S_2^T k_1")
    likely = (
        ((1 / 2, 1 / 2), "only the direction of k_2 shrinks, the one at right angles stays"),
        ((0, 1), "that is beta = 1; along k_2 it is 1 - beta"),
        ((1, 3 / 2), "the sign: I minus beta k k^T"),
        ((17 / 25, 41 / 50), "those are the entries of the diagonal; apply the matrix to k_2"),
    )
    for wrong, message in likely:
        require(not close(eigenvalues, sorted(wrong), 1e-3), f"eigenvalues: {message}")
    require(close(eigenvalues, (1 / 2, 1), 1e-3), "eigenvalues: of I - beta k k^T with |k| = 1")
    return "The second write moves the first answer from 4 to 7: keys that overlap interfere."


solution("3.2.2")((10, 7, 4, 7, 1 / 2, 1))
mutant("3.2.2", "answer already", "no error")((12.4, 7, 4, 7, 0.5, 1))
mutant("3.2.2", "already times beta", "error times beta")((5, 7, 4, 7, 0.5, 1))
mutant("3.2.2", "the other sign", "error upside down")((-10, 7, 4, 7, 0.5, 1))
mutant("3.2.2", "not for the first", "asked for the wrong key")((8.4, 7, 4, 7, 0.5, 1))
mutant("3.2.2", "beta is missing", "beta of one")((10, 10, 8, 10, 0.5, 1))
mutant("3.2.2", "the whole value", "additive write")((10, 7.72, 4.96, 7.72, 0.5, 1))
mutant("3.2.2", "the old state is gone", "replaced state")((10, 3, 4, 3, 0.5, 1))
mutant("3.2.2", "in this order", "key turned")((10, 8, 3, 8, 0.5, 1))
mutant("3.2.2", "not at right angles", "no interference")((10, 7, 4, 4, 0.5, 1))
mutant("3.2.2", "only the direction", "all shrinks")((10, 7, 4, 7, 0.5, 0.5))
mutant("3.2.2", "the sign", "plus")((10, 7, 4, 7, 1.5, 1))
mutant("3.2.2", "entries of the diagonal", "diagonal")((10, 7, 4, 7, 0.82, 0.68))

# ---- 3.2.7 slopes of operations and of the state


@checker("3.2.7")
def slopes_of_a_memory(answer) -> str:
    """Operations in one chunk 2, in chunks of 16 tokens 1, numbers of the state 0."""
    whole, chunked, state = numbers(answer, 3).tolist()
    require(
        not (abs(whole - 1) < 0.15 and abs(chunked - 2) < 0.15),
        "the first two are exchanged: one chunk as long as the sequence comes first",
    )
    require(
        not abs(whole - math.log10(4)) < 0.02,
        "the slope is a logarithm over a logarithm: polyfit of log counts against log lengths",
    )
    require(
        abs(whole - 2) < 0.15,
        f"in one chunk: slope {whole:.2f}, expected about 2; is chunk as long as the sequence?",
    )
    require(
        not abs(chunked - 2) < 0.15,
        "in chunks: that is the slope of one chunk again; set chunk=16 for every length",
    )
    require(
        abs(chunked - 1) < 0.1,
        f"in chunks: slope {chunked:.2f}, expected about 1; is chunk the same at all lengths?",
    )
    require(
        not abs(state - 1) < 0.1,
        "state: that is the slope of a cache; count the numbers of the final state alone",
    )
    require(abs(state) < 0.01, f"state: slope {state:.2f}, expected 0; its size does not grow")
    return "The same read costs N^2 or N operations, and its state nothing more."


solution("3.2.7")((2.0, 1.0, 0.0))
mutant("3.2.7", "exchanged", "exchanged")((1.0, 2.0, 0.0))
mutant("3.2.7", "as long as the sequence?", "a fixed chunk first")((1.5, 1.0, 0.0))
mutant("3.2.7", "slope of one chunk again", "one chunk twice")((2.0, 2.0, 0.0))
mutant("3.2.7", "the same at all lengths", "growing chunks")((2.0, 1.4, 0.0))
mutant("3.2.7", "slope of a cache", "keys counted")((2.0, 1.0, 1.0))
mutant("3.2.7", "does not grow", "negative")((2.0, 1.0, -0.5))
