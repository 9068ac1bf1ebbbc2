"""Typical wrong answers to the assignment on the soft lookup, and the points that they lose."""

from assignment_cells import Mutant

MUTANTS = [
    Mutant(
        "the exponent is positive",
        "sign",
        "posterior",
        "math.exp(-((1 - key) ** 2))",
        "math.exp((1 - key) ** 2)",
        {"test-posterior": "p_1 / p_2 is", "test-read": "the posterior mean"},
    ),
    Mutant(
        "one half is left in the exponent",
        "scale",
        "posterior",
        "math.exp(-((1 - key) ** 2))",
        "math.exp(-((1 - key) ** 2) / 2)",
        {"test-posterior": "nothing is left of the 2", "test-read": "the posterior mean"},
    ),
    Mutant(
        "scores are not divided",
        "scale",
        "attention",
        " / math.sqrt(query.shape[-1])",
        "",
        {
            "test-attention": "not divided by the root",
            "test-support": "still has weight",
        },
    ),
    Mutant(
        "the query's own key is hidden",
        "mask shifted by one",
        "attention",
        "<= torch.arange(rows)",
        "< torch.arange(rows)",
        {
            "test-attention": "shifted by one",
            "test-support": "still has weight",
            "test-large-scores": "finite, and not right",
        },
    ),
    Mutant(
        "the largest score is not subtracted",
        "no largest score",
        "attention",
        "torch.exp(scores - largest)",
        "torch.exp(scores)",
        {"test-large-scores": "subtract each row's largest"},
    ),
    Mutant(
        "the sum runs over the queries",
        "wrong axis",
        "attention",
        "terms.sum(dim=-1, keepdim=True)",
        "terms.sum(dim=0)[:, None]",
        {
            "test-attention": "",
            "test-support": "still has weight",
            "test-large-scores": "finite, and not right",
        },
    ),
    Mutant(
        "the mask is written into the caller's table",
        "stale state",
        "attention",
        "seen = seen & allowed",
        "seen = allowed.logical_and_(seen)",
        {"test-support": "has written into the caller's table"},
    ),
    Mutant(
        "every attention is called right",
        "sign",
        "faults",
        "return not (",
        "return (",
        {"test-faults": "was called wrong"},
    ),
    Mutant(
        "entropy over the queries",
        "wrong axis",
        "entropy",
        "sum(-1)",
        "sum(0)",
        {"test-entropy": "lies in"},
    ),
]
