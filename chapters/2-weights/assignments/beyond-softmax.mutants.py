"""Typical wrong answers to the assignment on other weights, and the points that they lose."""

from assignment_cells import Mutant

ABSENT = {"mask shifted by one": "a weight is handed its support, and no task makes one"}
"""Kinds without a place here; keys that should be hidden are heard instead."""

MUTANTS = [
    Mutant(
        "an exponential for a wish about a factor",
        "wrong invariance",
        "leads",
        "weights = [s**kappa / sum(t**kappa for t in (1, 2, 4)) for s in (1, 2, 4)]",
        "weights = [8**s / sum(8**t for t in (1, 2, 4)) for s in (1, 2, 4)]",
        {"test-wish": "the wish is about a factor"},
    ),
    Mutant(
        "three digits",
        "rounding",
        "leads",
        "far = [math.inf, lead(1.5, 0), lead(2, 0)]",
        "weights, half_row = [0.014, 0.11, 0.876], [3.466, 1.164, 0.484]\n"
        "far = [math.inf, 1.414, 0.5]",
        {"test-wish": "give six digits", "test-half-row": "give six digits"},
    ),
    Mutant(
        "the score is divided by alpha - 1",
        "scale",
        "leads",
        "1 / (alpha - 1) for alpha in",
        "alpha - 1 for alpha in",
        {"test-whole-row": "not divided"},
    ),
    Mutant(
        "the lead lacks its factor",
        "scale",
        "leads",
        "- of_others ** (alpha - 1)) / (alpha - 1)",
        "- of_others ** (alpha - 1))",
        {"test-half-row": "still multiplied by alpha - 1"},
    ),
    Mutant(
        "the others are taken to have nothing",
        "missing term",
        "leads",
        "lead(1.5, 1 / 64), lead(2, 1 / 64)",
        "lead(1.5, 0), lead(2, 0)",
        {"test-half-row": "each of them has a weight"},
    ),
    Mutant(
        "scores are not multiplied by alpha - 1",
        "scale",
        "bent",
        "((alpha - 1) * scores)",
        "(1.0 * scores)",
        {"test-bent": "lacks the factor alpha - 1"},
    ),
    Mutant(
        "the sum runs over the queries",
        "wrong axis",
        "bent",
        ".pow(1 / (alpha - 1)).sum(dim=-1, keepdim=True)",
        ".pow(1 / (alpha - 1)).sum(dim=-2, keepdim=True).amax(dim=-1, keepdim=True)",
        {
            "test-bent": "",
            "test-promises": "no leak from the future",
        },
    ),
    Mutant(
        "the search does not begin at the largest score",
        "no largest score",
        "bent",
        "x = x - highest\n"
        "        low, high = torch.full_like(highest, -1.0), torch.zeros_like(highest)",
        "low, high = torch.full_like(highest, -99.0), torch.full_like(highest, 99.0)",
        {"test-bent": "search below each row's largest"},
    ),
    Mutant(
        "hidden keys take part",
        "hidden keys are heard",
        "bent",
        ".masked_fill(~support, -math.inf)",
        "",
        {
            "test-bent": "outside the support",
            "test-bent-gradient": "",
            "test-promises": "",
        },
    ),
    Mutant(
        "hidden scores are overwritten in place",
        "stale state",
        "bent",
        "((alpha - 1) * scores).masked_fill(~support, -math.inf)",
        "((alpha - 1) * scores.masked_fill_(~support, -math.inf))",
        {"test-bent": "changes its input"},
    ),
    Mutant(
        "the gradient has the wrong sign",
        "sign",
        "bent",
        "return u * (grad - mean)",
        "return u * (mean - grad)",
        {
            "test-bent-gradient": "the sign is turned around",
        },
    ),
    Mutant(
        "the threshold stands still",
        "missing term",
        "bent",
        "return u * (grad - mean)",
        "return u * grad",
        {
            "test-bent-gradient": "the threshold moves, too",
        },
    ),
    Mutant(
        "the mean is taken under the weights",
        "wrong mean",
        "bent",
        "(u * grad).sum(dim=-1, keepdim=True) / total",
        "(p * grad).sum(dim=-1, keepdim=True)",
        {
            "test-bent-gradient": "the mean is taken under p",
        },
    ),
    Mutant(
        "cut keys have a gradient where the power is zero",
        "zero to the zero",
        "bent",
        "torch.where(p > 0, p ** (2 - ctx.alpha), 0.0)",
        "p ** (2 - ctx.alpha)",
        {"test-bent-gradient": "alpha = 2.0: a key that was cut"},
    ),
    Mutant(
        "a broken promise is called kept",
        "sign",
        "broken",
        "if not torch.allclose(longer[:, :6], plain):",
        "if torch.allclose(longer[:, :6], plain):",
        {
            "test-given": "called broken",
            "test-others": "called broken",
        },
    ),
    Mutant(
        "other rows change their scores, not their support",
        "half a test",
        "broken",
        "weight(scores, other_support)]",
        "plain]",
        {"test-others": "hears the support of other rows"},
    ),
    Mutant(
        "scores that are not large",
        "scale",
        "broken",
        "large = 1e4 * scores",
        "large = 1e2 * scores",
        {
            "test-given": "whatever its size",
            "test-others": "powers of large scores",
        },
    ),
    Mutant(
        "scatter makes rows quieter",
        "sign",
        "bias",
        "-math.log(n) - deviation**2 / 2",
        "-math.log(n) + deviation**2 / 2",
        {
            "test-bias": "the bias has to be lower",
        },
    ),
    Mutant(
        "squares are compared",
        "scale",
        "loudness",
        "(softmax @ value).square().mean()).sqrt()",
        "(softmax @ value).square().mean())",
        {"test-loudness": "ratio of the squares"},
    ),
    Mutant(
        "row sums, and no values",
        "half a measurement",
        "loudness",
        "((sigmoid @ value).square().mean() / (softmax @ value).square().mean()).sqrt()",
        "sigmoid.sum(dim=-1).mean()",
        {"test-loudness": "are values read"},
    ),
    Mutant(
        "no correction",
        "missing term",
        "loudness",
        "bias(4096, deviation) if corrected else -math.log(4096)",
        "-math.log(4096)",
        {"test-loudness": "the corrected read"},
    ),
    Mutant(
        "softmax over the queries",
        "wrong axis",
        "loudness",
        "scores.softmax(dim=-1)",
        "scores.softmax(dim=0)",
        {"test-loudness": "scores of zero"},
    ),
]
