"""Typical wrong answers to the assignment on states, and the points that they lose."""

from assignment_cells import Mutant

ABSENT = {
    "no largest score": "no row is divided by its sum here; decays taken as a quotient of two "
    "underflown products stand in its place"
}

MUTANTS = [
    Mutant(
        "the noise counts the pair that is asked for",
        "wrong term",
        "hearing",
        "(1 / (1 - square) - square**1) / 64",
        "1 / (1 - square) / 64",
        {"test-noise": "no noise"},
    ),
    Mutant(
        "the faded writes add up, not their squares",
        "scale",
        "hearing",
        "square = 1 / 2\nsignal = square**1",
        "square = math.sqrt(1 / 2)\nsignal = square**2",
        {"test-noise": "the squares of the faded writes"},
    ),
    Mutant(
        "the square of the best decay",
        "scale",
        "hearing",
        "best = math.sqrt(20 / 21)",
        "best = 20 / 21",
        {"test-oldest": "the square of the decay"},
    ),
    Mutant(
        "the age before the oldest",
        "mask shifted by one",
        "hearing",
        "oldest = max(n for n in range(1, 64)",
        "oldest = max(n - 1 for n in range(1, 64)",
        {"test-oldest": "is still heard"},
    ),
    Mutant(
        "transitions in the wrong order",
        "wrong order",
        "join",
        "return second @ first, second @ wrote + writes",
        "return first @ second, second @ wrote + writes",
        {"test-join": "the earlier one acts first", "test-scanned": "token by token"},
    ),
    Mutant(
        "an earlier write passes no transition",
        "wrong term",
        "join",
        "second @ wrote + writes",
        "wrote + writes",
        {"test-join": "must pass the later transition", "test-scanned": "token by token"},
    ),
    Mutant(
        "the scan joins the later step first",
        "wrong order",
        "scan",
        "join((A[:-reach], B[:-reach]), (A[reach:], B[reach:]))",
        "join((A[reach:], B[reach:]), (A[:-reach], B[:-reach]))",
        {"test-scan": "in this order", "test-scanned": "token by token"},
    ),
    Mutant(
        "one step after the other",
        "too many rounds",
        "scan",
        """    joined = join((A[:-reach], B[:-reach]), (A[reach:], B[reach:]))
        A = torch.cat((A[:reach], joined[0]))
        B = torch.cat((B[:reach], joined[1]))
        reach = 2 * reach""",
        """    last = slice(reach - 1, reach), slice(reach, reach + 1)
        joined = join(*[(A[at], B[at]) for at in last])
        A = torch.cat((A[:reach], joined[0], A[reach + 1 :]))
        B = torch.cat((B[:reach], joined[1], B[reach + 1 :]))
        reach = reach + 1""",
        {"test-scan": "more often than a scan needs"},
    ),
    Mutant(
        "the scan writes into the caller's tensors",
        "stale state",
        "scan",
        "A = torch.cat((A[:reach], joined[0]))",
        "A[reach:] = joined[0]",
        {"test-scan": "into the caller's A or B"},
    ),
    Mutant(
        "each entry ends one step early",
        "mask shifted by one",
        "scan",
        "    return A, B",
        "    return A, torch.cat((0 * B[:1], B[:-1]))",
        {"test-scan": "entry 0 is not the join", "test-scanned": "shifted by one"},
    ),
    Mutant(
        "the key is doubled instead of erased",
        "sign",
        "scanned",
        "dtype=key.dtype) - step",
        "dtype=key.dtype) + step",
        {"test-scanned": "token by token"},
    ),
    Mutant(
        "the memory is asked before it fades",
        "wrong order",
        "scanned",
        "decay * mirrors, writes",
        "mirrors - (1 - decay) * torch.eye(key.shape[-1], dtype=key.dtype), writes",
        {"test-scanned": "fades before it is asked"},
    ),
    Mutant(
        "decays as quotients of running products",
        "quotient of decays",
        "scanned",
        "decay = log_decay.exp()[:, None, None]",
        "products = log_decay.cumsum(0).exp()[:, None, None]\n"
        "    decay = products / torch.cat((torch.ones_like(products[:1]), products[:-1]))",
        {"test-scanned": "not finite"},
    ),
    Mutant(
        "the query asks the other axis",
        "wrong axis",
        "scanned",
        "mirrors = torch.eye(key.shape[-1], dtype=key.dtype) - step * key[:, :, None]",
        "mirrors = torch.eye(key.shape[-1], dtype=key.dtype) - step * query[:, :, None]",
        {"test-scanned": "token by token"},
    ),
    Mutant(
        "three tokens where two will do",
        "not the smallest",
        "smallest",
        "ones = torch.ones(2, 1).double()\n    log_decay = torch.tensor([0.0, -1.0])",
        "ones = torch.ones(3, 1).double()\n    log_decay = torch.tensor([0.0, -1.0, -1.0])",
        {"test-smallest": "fewer tokens"},
    ),
    Mutant(
        "only the first token fades",
        "mask shifted by one",
        "smallest",
        "[0.0, -1.0]",
        "[-1.0, 0.0]",
        {"test-smallest": "is right on this input"},
    ),
    Mutant(
        "both tokens in one chunk",
        "wrong term",
        "smallest",
        "log_decay, 1",
        "log_decay, 2",
        {"test-smallest": "in the first chunk"},
    ),
    Mutant(
        "the token's own decay is left out",
        "mask shifted by one",
        "repaired",
        "before = c.exp()",
        "before = (c - a[:, None]).exp()",
        {"test-repaired": "is wrong, the first that is"},
    ),
    Mutant(
        "the caller's state is changed in place",
        "stale state",
        "repaired",
        "state = c[-1].exp() * state",
        "state *= c[-1].exp()",
        {"test-repaired": "has been changed"},
    ),
    Mutant(
        "a write gains what it should lose",
        "sign",
        "repaired",
        "(c[-1] - c).exp()",
        "(c - c[-1]).exp()",
        {"test-repaired": "is wrong, the first that is"},
    ),
    Mutant(
        "keys are not of length one",
        "scale",
        "measure",
        "    key = torch.nn.functional.normalize(key, dim=-1)\n",
        "",
        {"test-measure": "erases too much"},
    ),
    Mutant(
        "keys are normalized over the tokens",
        "wrong axis",
        "measure",
        "normalize(key, dim=-1)",
        "normalize(key, dim=0)",
        {"test-measure": ""},
    ),
    Mutant(
        "age 0 is the token before the last",
        "mask shifted by one",
        "measure",
        "for age in ages:",
        "for age in (age + 1 for age in ages):",
        {"test-measure": "older by one"},
    ),
    Mutant(
        "the delta rule adds what it should erase",
        "sign",
        "measure",
        "written = v - torch",
        "written = v + torch",
        {"test-measure": ""},
    ),
]
