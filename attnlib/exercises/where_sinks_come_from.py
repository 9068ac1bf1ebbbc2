"""The exercises of chapter 4.1, where sinks come from, that are answered with numbers."""

import math

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 4.1.1 what an unwanted read costs

COST = math.log(3 / 2) - math.log(2) / 2
HALF_VARIANCE = math.log(2) ** 2 / 8
COST_OF_HALF = math.log((1 + math.sqrt(2)) / 2) - math.log(2) / 4


@checker("4.1.1")
def cost_of_an_unwanted_read(answer) -> str:
    """K(r) for p = (1/2, 1/4, 1/4), r = (log 2, 0, 0); its second order; K(r / 2)."""
    cost, second_order, half = numbers(answer, 3).tolist()
    likely = (
        (-COST, "the other sign: the loss grows, so log(sum p e^r) comes first"),
        (COST / math.log(2), "that is in bits; take the natural logarithm"),
        (3 / 2 - math.log(2) / 2, "the logarithm of the sum is missing"),
        (
            math.log(2) * 2 / 3 - math.log(3 / 2),
            "that is the divergence from the pushed chances; the text still follows p",
        ),
        (math.log(3 / 2), "the mean of r under p is missing: log(sum p e^r) - sum p r"),
    )
    for wrong, message in likely:
        require(not close(cost, wrong, 1e-4), f"K(r): {message}")
    require(close(cost, COST, 1e-4), "K(r): K = log(sum p e^r) - sum p r")
    likely = (
        (2 * HALF_VARIANCE, "half of the variance: the second term of a Taylor series"),
        (math.log(2) ** 2 / 9, "weigh the words with p, not all alike"),
        (COST, "that is K itself; the second order is half of the variance of r under p"),
    )
    for wrong, message in likely:
        require(not close(second_order, wrong, 1e-4), f"second order: {message}")
    require(
        close(second_order, HALF_VARIANCE, 1e-4), "second order: half of the variance of r under p"
    )
    likely = (
        (COST / 2, "K is not linear: half of the read costs much less than half"),
        (COST, "put r / 2 = (log 2 / 2, 0, 0) into K"),
    )
    for wrong, message in likely:
        require(not close(half, wrong, 1e-4), f"K(r / 2): {message}")
    require(close(half, COST_OF_HALF, 1e-4), "K(r / 2): put r / 2 into K")
    return "Half of the read costs about a quarter: the cost is quadratic in small reads."


solution("4.1.1")((COST, HALF_VARIANCE, COST_OF_HALF))
mutant("4.1.1", "the other sign", "loss that falls")((-COST, HALF_VARIANCE, COST_OF_HALF))
mutant("4.1.1", "in bits", "bits")((COST / math.log(2), HALF_VARIANCE, COST_OF_HALF))
mutant("4.1.1", "logarithm of the sum", "no logarithm")(
    (1.5 - math.log(2) / 2, HALF_VARIANCE, COST_OF_HALF)
)
mutant("4.1.1", "from the pushed chances", "divergence turned")(
    (math.log(2) * 2 / 3 - math.log(1.5), HALF_VARIANCE, COST_OF_HALF)
)
mutant("4.1.1", "mean of r", "no mean")((math.log(1.5), HALF_VARIANCE, COST_OF_HALF))
mutant("4.1.1", "half of the variance", "whole variance")((COST, 2 * HALF_VARIANCE, COST_OF_HALF))
mutant("4.1.1", "not all alike", "words alike")((COST, math.log(2) ** 2 / 9, COST_OF_HALF))
mutant("4.1.1", "not linear", "linear cost")((COST, HALF_VARIANCE, COST / 2))
mutant("4.1.1", "K itself", "no second order")((COST, COST, COST_OF_HALF))
mutant("4.1.1", "(log 2 / 2, 0, 0)", "the whole read again")((COST, HALF_VARIANCE, COST))

# ---- 4.1.3 the null logit as a gate


@checker("4.1.3")
def null_logit_as_a_gate(answer) -> str:
    """Scores log 1, log 3, values 4, 8, null log 4: total 1/2, read 7/2; scores + log 2: 2/3."""
    total, read, raised = numbers(answer, 3).tolist()
    likely = (
        (1.0, "the weights on the keys alone sum to less than one: the null has a part"),
        (4 / 5, "that is the null logit 0: e^a is 4 here, not 1"),
        (1 / (1 + 4 * math.exp(-4)), "the gate asks for the logarithm of the sum, not the sum"),
        (4 / 12, "there is one null for the row, not one for each key"),
    )
    for wrong, message in likely:
        require(not close(total, wrong, 1e-3), f"total: {message}")
    require(close(total, 1 / 2, 1e-3), "total: sigmoid(L - a) with L = log(sum e^s)")
    likely = (
        (7.0, "that is the softmax read; the gate is still missing"),
        (6 / 2, "the softmax weighs the values by 1/4 and 3/4, not alike"),
        (11 / 2, "the null has the value zero, not that of a key"),
        (7 / 3, "the gate is 1/2, not 1/3: one null for the row"),
    )
    for wrong, message in likely:
        require(not close(read, wrong, 1e-3), f"read: {message}")
    require(close(read, 7 / 2, 1e-3), "read: the gate times the softmax read")
    likely = (
        (1 / 2, "softmax does not see a shift of all scores, but the null stays where it is"),
        (1 / 3, "that is what the null keeps; what do the keys get?"),
        (4 / 5, "L grows by log 2, so the sum of e^s doubles: 8 beside the null's 4"),
    )
    for wrong, message in likely:
        require(not close(raised, wrong, 1e-3), f"raised scores: {message}")
    require(close(raised, 2 / 3, 1e-3), "raised scores: 8 / (8 + 4)")
    return "The read is the gate times the softmax read; the null makes the scores' size matter."


solution("4.1.3")((1 / 2, 7 / 2, 2 / 3))
mutant("4.1.3", "the null has a part", "rows sum to one")((1, 7 / 2, 2 / 3))
mutant("4.1.3", "the null logit 0", "null of zero")((4 / 5, 28 / 5, 8 / 9))
mutant("4.1.3", "not the sum", "gate of the sum")((1 / (1 + 4 * math.exp(-4)), 7 / 2, 2 / 3))
mutant("4.1.3", "one for each key", "a null for each key")((1 / 3, 7 / 3, 1 / 2))
mutant("4.1.3", "the gate is still missing", "no gate")((1 / 2, 7, 2 / 3))
mutant("4.1.3", "not alike", "uniform values")((1 / 2, 3, 2 / 3))
mutant("4.1.3", "the value zero", "a null that speaks")((1 / 2, 11 / 2, 2 / 3))
mutant("4.1.3", "stays where it is", "shift unseen")((1 / 2, 7 / 2, 1 / 2))
mutant("4.1.3", "what the null keeps", "the null's part")((1 / 2, 7 / 2, 1 / 3))

# ---- 4.1.6 the sink of a sharp table


@checker("4.1.6")
def share_at_a_sharp_table(answer) -> str:
    """Weight of letters on the start token at sharpness 4 (0.02 to 0.21), loss above the best.

    An untrained model has a small weight too, but a loss more than one nat above the best.
    """
    share, excess = (float(x) for x in numbers(answer, 2))
    require(share >= 0, f"got {share}: a weight of softmax is never negative")
    require(not 1 < share <= 100, "hand in a share between 0 and 1, not a percentage")
    require(share <= 1, f"got {share}: the mean of weights is at most 1")
    require(
        share < 0.7,
        f"got {share:.2f}, as on a flat table: is sharpness=4.0 given to the task of the training?",
    )
    require(
        share < 0.3,
        f"got {share:.2f}: is sharpness 4.0, and were there 300 steps at the rate of section 2?",
    )
    require(
        excess < 0.2,
        f"the loss is {excess:.2f} nats above the best, so this model has not learned its text; "
        "is the text's own -log p subtracted, and were there 300 steps?",
    )
    require(excess > -0.1, f"got {excess:.2f}: no model is that much better than the text itself")
    return "On a sharp table the trained model has no sink."


solution("4.1.6")((0.022, 0.043))
mutant("4.1.6", "as on a flat table", "the page's own task")((0.99, 0.023))
mutant("4.1.6", "the rate of section 2", "another sharpness")((0.40, 0.049))
mutant("4.1.6", "not a percentage", "percent")((2.2, 0.043))
mutant("4.1.6", "never negative", "a logarithm")((-3.8, 0.043))
mutant("4.1.6", "at most 1", "a sum")((704.0, 0.043))
mutant("4.1.6", "has not learned its text", "an untrained model")((0.08, 1.25))
