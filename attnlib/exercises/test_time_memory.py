"""The exercises of chapter 7.2, memories that learn, that are answered with numbers."""

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 7.2.1 blocking by hand


@checker("7.2.1")
def blocking_by_hand(answer) -> str:
    """Delta rule: bell 7/8, light 1/8; Hebb's rule: bell 2, light 1."""
    strengths = numbers(answer, 4).tolist()
    delta, hebb = strengths[:2], strengths[2:]
    likely = (
        ((2, 1), "exchanged with Hebb's rule: the delta rule comes first"),
        ((1 / 8, 7 / 8), "bell and light are exchanged"),
        ((15 / 16, 15 / 16), "the light learns from trials in which it was not there"),
        (
            (15 / 16, 3 / 4),
            "each cue has an error of its own: in a trial with both, the error is 1 minus the sum",
        ),
        ((13 / 16, 1 / 16), "the error of a trial with both is halved twice: each moves by e / 2"),
        ((3 / 4, 0), "the two trials with both are missing: 1/4 is left to predict"),
        ((3 / 4, 1 / 4), "the bell learns too: both are there, both are moved"),
        ((1, 1 / 4), "moved by the whole error; the rate is one half"),
    )
    for wrong, message in likely:
        require(not close(delta, wrong, 1e-3), f"delta rule: {message}")
    require(
        close(delta, (7 / 8, 1 / 8), 1e-3),
        "delta rule: the bell has 1/2, then 3/4; a trial with both shares the error 1/4",
    )
    likely = (
        ((1, 2), "bell and light are exchanged"),
        ((4, 2), "the rate is missing: every trial adds 1/2"),
        ((2, 2), "the light is not there in the first two trials"),
        ((15 / 16, 3 / 4), "there is no error in Hebb's rule: every trial adds 1/2"),
    )
    for wrong, message in likely:
        require(not close(hebb, wrong, 1e-3), f"Hebb's rule: {message}")
    require(close(hebb, (2, 1), 1e-3), "Hebb's rule: 1/2 for every trial in which a cue is there")
    return "The bell blocks the light for the delta rule, and not for Hebb's."


solution("7.2.1")((7 / 8, 1 / 8, 2, 1))
mutant("7.2.1", "the delta rule comes first", "rules exchanged")((2, 1, 7 / 8, 1 / 8))
mutant("7.2.1", "delta rule: bell and light are exchanged", "exchanged")((1 / 8, 7 / 8, 2, 1))
mutant("7.2.1", "in which it was not there", "light everywhere")((15 / 16, 15 / 16, 2, 1))
mutant("7.2.1", "an error of its own", "own errors")((15 / 16, 3 / 4, 2, 1))
mutant("7.2.1", "halved twice", "rate shared")((13 / 16, 1 / 16, 2, 1))
mutant("7.2.1", "the two trials with both are missing", "half the trials")((3 / 4, 0, 2, 1))
mutant("7.2.1", "the bell learns too", "light alone")((3 / 4, 1 / 4, 2, 1))
mutant("7.2.1", "moved by the whole error", "no rate")((1, 1 / 4, 2, 1))
mutant("7.2.1", "Hebb's rule: bell and light", "Hebb exchanged")((7 / 8, 1 / 8, 1, 2))
mutant("7.2.1", "the rate is missing", "Hebb without rate")((7 / 8, 1 / 8, 4, 2))
mutant("7.2.1", "not there in the first two", "light in all trials")((7 / 8, 1 / 8, 2, 2))
mutant("7.2.1", "no error in Hebb's rule", "Hebb with an error")((7 / 8, 1 / 8, 15 / 16, 3 / 4))

# ---- 7.2.2 the largest stable rate


@checker("7.2.2")
def largest_rates(answer) -> str:
    """(2 - alpha)(1 + eta): 3, 27/10, 2; the product of the roots is eta (1 - alpha) = 2/5."""
    *bounds, product = numbers(answer, 4).tolist()
    likely = (
        ((1, 0.8, 2), "momentum makes the bound smaller: the sign of eta; put z = -1, not z = 1"),
        ((1.5, 1.35, 1), "half of it: at the edge the root is -1, not 0"),
        ((2, 1.8, 2), "momentum is left out: the bound is (2 - alpha)(1 + eta)"),
        ((3, 3, 2), "forgetting is left out: with alpha > 0 the memory shrinks by itself"),
        ((3, 3.3, 2), "the sign of alpha: 1 - alpha stands in the equation, not 1 + alpha"),
        ((3, 2.8, 2), "alpha is subtracted once; it also enters the last term, eta (1 - alpha)"),
        ((2, 2.7, 3), "the first and the third are exchanged: the order is that of the question"),
        ((0, 0, 0), "z = 1 gives zero: that edge is left when theta becomes negative"),
    )
    for wrong, message in likely:
        require(not close(bounds, wrong, 1e-3), f"rates: {message}")
    require(
        close(bounds, (3, 2.7, 2), 1e-3),
        "rates: put z = -1 into z^2 - (1 - alpha + eta - theta) z + eta (1 - alpha) = 0",
    )
    likely = (
        (0.5, "that is eta alone; the last term is eta (1 - alpha)"),
        (0.8, "that is 1 - alpha alone; the last term is eta (1 - alpha)"),
        (-0.4, "the sign: the product of the roots is the last term itself"),
        (0.1, "that is eta times alpha; alpha is what is forgotten, 1 - alpha what stays"),
        (1.3, "that is the sum of the roots for theta = 0"),
    )
    for wrong, message in likely:
        require(not close(product, wrong, 1e-3), f"product: {message}")
    require(close(product, 0.4, 1e-3), "product: for z^2 + b z + c it is c")
    return "The bound is (2 - alpha)(1 + eta), and the roots' product does not know the rate."


solution("7.2.2")((3, 2.7, 2, 0.4))
mutant("7.2.2", "momentum makes the bound smaller", "sign of momentum")((1, 0.8, 2, 0.4))
mutant("7.2.2", "half of it", "root at zero")((1.5, 1.35, 1, 0.4))
mutant("7.2.2", "momentum is left out", "no momentum")((2, 1.8, 2, 0.4))
mutant("7.2.2", "forgetting is left out", "no forgetting")((3, 3, 2, 0.4))
mutant("7.2.2", "the sign of alpha", "sign of forgetting")((3, 3.3, 2, 0.4))
mutant("7.2.2", "subtracted once", "alpha once")((3, 2.8, 2, 0.4))
mutant("7.2.2", "the first and the third", "reversed")((2, 2.7, 3, 0.4))
mutant("7.2.2", "z = 1 gives zero", "the other edge")((0, 0, 0, 0.4))
mutant("7.2.2", "eta alone", "product without alpha")((3, 2.7, 2, 0.5))
mutant("7.2.2", "1 - alpha alone", "product without eta")((3, 2.7, 2, 0.8))
mutant("7.2.2", "product: the sign", "minus the product")((3, 2.7, 2, -0.4))
mutant("7.2.2", "eta times alpha", "forgotten for kept")((3, 2.7, 2, 0.1))
mutant("7.2.2", "the sum of the roots", "sum for product")((3, 2.7, 2, 1.3))

# ---- 7.2.7 how the capacity grows with the width


@checker("7.2.7")
def capacity_exponents(answer) -> str:
    """Pairs that fit grow like d for random values, like sqrt(d) for the worst."""
    average, worst = numbers(answer, 2).tolist()
    require(
        not (abs(average - 0.5) < 0.15 and abs(worst - 1) < 0.15),
        "the two are exchanged: random values come first",
    )
    require(
        not (abs(average + 1) < 0.15 or abs(worst + 0.5) < 0.15),
        "a negative exponent: fit the pairs that fit, which grow with the width, not the error",
    )
    require(
        not (abs(average - 2.4) < 0.3 or abs(worst - 1.2) < 0.15),
        "natural logarithms on one side and logarithms to base 10 on the other",
    )
    require(
        not abs(average - 2) < 0.3,
        "random values: exponent 2: is the threshold on the error, not on its square root?",
    )
    require(
        abs(average - 1) < 0.15,
        f"random values: exponent {average:.2f}, expected about 1; average over more draws, and "
        "hold the threshold for the error the same for all widths",
    )
    require(
        not abs(worst - 1) < 0.15,
        "worst case: that is the exponent of random values; here all errors must add up, which "
        "is the sum of |k_j . k_1|",
    )
    require(
        abs(worst - 0.5) < 0.15,
        f"worst case: exponent {worst:.2f}, expected about 1/2; sum the |k_j . k_1|, not their "
        "squares",
    )
    return "Random values add up like a walk, the worst ones in a straight line."


solution("7.2.7")((1.0, 0.5))
mutant("7.2.7", "the two are exchanged", "exchanged")((0.5, 1.0))
mutant("7.2.7", "a negative exponent", "the error for the capacity")((-1.0, -0.5))
mutant("7.2.7", "natural logarithms", "two bases")((2.3, 1.15))
mutant("7.2.7", "exponent 2", "root of the error")((2.0, 0.5))
mutant("7.2.7", "average over more draws", "too flat")((0.7, 0.5))
mutant("7.2.7", "that is the exponent of random values", "random values twice")((1.0, 1.0))
mutant("7.2.7", "not their squares", "too steep")((1.0, 0.75))
