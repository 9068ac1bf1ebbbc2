"""Typical wrong answers to the assignment on memories that learn, and the points that they lose."""

from assignment_cells import Mutant

MUTANTS = [
    Mutant(
        "the momentum does not carry itself on",
        "scale",
        "settles",
        "forgotten = 0.2 * (1 - 0.5)",
        "forgotten = 0.2",
        {"test-settled": "it makes up for what is forgotten"},
    ),
    Mutant(
        "the rate for a tenth",
        "wrong inverse",
        "settles",
        "rate = 9 * forgotten",
        "rate = forgotten / 9",
        {"test-settled": "does not settle at nine tenths"},
    ),
    Mutant(
        "the two exponentials are halved twice",
        "scale",
        "settles",
        "threshold = 1.0",
        "threshold = 0.5",
        {"test-valley": "not of beta q / 2"},
    ),
    Mutant(
        "one step of the recall is taken for its end",
        "stops early",
        "settles",
        "for _ in range(100):",
        "for _ in range(1):",
        {"test-valley": "the recall does not end at"},
    ),
    Mutant(
        "the memory climbs",
        "sign",
        "window",
        "memory = memory - rate",
        "memory = memory + rate",
        {"test-window": "check the sign"},
    ),
    Mutant(
        "the errors are averaged",
        "scale",
        "window",
        "memory = memory - rate * keys.mT",
        "memory = memory - rate / len(keys) * keys.mT",
        {"test-window": "summed, not averaged"},
    ),
    Mutant(
        "one pair too many",
        "mask shifted by one",
        "window",
        "keys = torch.cat([keys, k[None]])[-window:]\n"
        "        values = torch.cat([values, v[None]])[-window:]",
        "keys = torch.cat([keys, k[None]])[-window - 1 :]\n"
        "        values = torch.cat([values, v[None]])[-window - 1 :]",
        {"test-window": "the window is shifted by one"},
    ),
    Mutant(
        "the memory that was handed in is written to",
        "stale state",
        "window",
        "memory = memory - rate *",
        "memory -= rate *",
        {"test-state": "no longer what it was"},
    ),
    Mutant(
        "only the memory is handed over",
        "stale state",
        "window",
        "return torch.cat(reads), (memory, keys, values)",
        "return torch.cat(reads), (memory, key[:0], value[:0])",
        {"test-state": "still in the window"},
    ),
    Mutant(
        "only the pairs of the last part are handed over",
        "stale state",
        "window",
        "return torch.cat(reads), (memory, keys, values)",
        "return torch.cat(reads), (memory, key[-window:], value[-window:])",
        {"test-state": "in parts of (1, 1, 1"},
    ),
    Mutant(
        "a part without tokens is not expected",
        "empty input",
        "window",
        "reads = [value[:0]]",
        "reads = []",
        {"test-state": "your function raised"},
    ),
    Mutant(
        "the largest score is not subtracted",
        "no largest score",
        "recall",
        "torch.exp(scores - scores.amax(dim=-1, keepdim=True))",
        "torch.exp(scores)",
        {"test-recall": "subtract each row's largest"},
    ),
    Mutant(
        "the weights sum to one over the queries",
        "wrong axis",
        "recall",
        "terms = torch.exp(scores - scores.amax(dim=-1, keepdim=True))\n"
        "        query = terms @ patterns / terms.sum(dim=-1, keepdim=True)",
        "terms = torch.exp(scores - scores.amax(dim=0, keepdim=True))\n"
        "        query = (terms / terms.sum(dim=0, keepdim=True)) @ patterns",
        {"test-recall": "yours over the queries"},
    ),
    Mutant(
        "the scores are divided by the root of the width",
        "scale",
        "recall",
        "scores = beta * query @ patterns.mT",
        "scores = beta / math.sqrt(query.shape[-1]) * query @ patterns.mT",
        {"test-recall": "nothing is divided by the root"},
    ),
    Mutant(
        "only the gradient of the first layer is looked at",
        "half checked",
        "wrong-gradients",
        "enumerate((W1, W2))",
        "enumerate((W1,))",
        {"test-wrong-gradients": "one wrong entry in the gradient of W2"},
    ),
    Mutant(
        "the slope is compared with the wrong sign",
        "sign",
        "wrong-gradients",
        "(sides[0] - sides[1])",
        "(sides[1] - sides[0])",
        {"test-wrong-gradients": "ada's gradients are right"},
    ),
    Mutant(
        "the slopes are summed before they are compared",
        "half checked",
        "wrong-gradients",
        "            if abs(slope - found[place].reshape(-1)[entry]) > 1e-6:\n"
        "                return True\n"
        "    return False",
        "            W1.apart = getattr(W1, 'apart', 0) + slope - found[place].reshape(-1)[entry]\n"
        "    return bool(abs(W1.apart) > 1e-6)",
        {"test-wrong-gradients": "in reverse order"},
    ),
    Mutant(
        "the error is taken after the write",
        "stale state",
        "tracking",
        "        errors.append(error.square().mean())\n"
        "        memory = memory + rate * key * error[:, None]\n",
        "        memory = memory + rate * key * error[:, None]\n"
        "        errors.append((value - (key * memory).sum(-1)).square().mean())\n",
        {"test-tracking": "that is the error after the write"},
    ),
]
