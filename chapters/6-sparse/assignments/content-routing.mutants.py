"""Typical wrong answers to the assignment on supports by content, and the points they lose."""

from assignment_cells import Mutant

MUTANTS = [
    Mutant(
        "the angle over pi as the chance of equal signs",
        "sign",
        "rounds",
        "(1 - 1 / 5) ** 4",
        "(1 / 5) ** 4",
        {"test-rounds": "the chance of DIFFERENT signs"},
    ),
    Mutant(
        "a stranger that is met twice counts twice",
        "count",
        "rounds",
        "(1 - (1 - 0.5**4) ** rounds)",
        "rounds / 16",
        {"test-rounds": "counted twice"},
    ),
    Mutant(
        "the share that is kept",
        "sign",
        "rounds",
        "(1024 - 256) /",
        "(1024 + 256) /",
        {"test-dropped": "that is KEPT"},
    ),
    Mutant(
        "the weight over all keys",
        "scale",
        "rounds",
        "1024 / (1024 + 256)",
        "1024 / (1024 + 1024)",
        {"test-dropped": "grow by 1 / (1 - delta)"},
    ),
    Mutant(
        "scores are not divided",
        "scale",
        "clusters",
        " / math.sqrt(query.shape[-1])",
        "",
        {"test-clusters": "not divided by the root of D"},
    ),
    Mutant(
        "the query's own key is hidden",
        "mask shifted by one",
        "clusters",
        "place <= place",
        "place < place",
        {"test-clusters": "reads its own key alone"},
    ),
    Mutant(
        "one key more than T",
        "mask shifted by one",
        "clusters",
        "(from_the_end <= latest)",
        "(from_the_end <= latest + 1)",
        {"test-clusters": "reads its own key alone"},
    ),
    Mutant(
        "the first keys of the cluster, not the last",
        "order",
        "clusters",
        "seen.flip(-1).cumsum(-1).flip(-1)",
        "seen.cumsum(-1)",
        {"test-clusters": "reads its own key alone"},
    ),
    Mutant(
        "keys in the cluster of their queries",
        "wrong input",
        "clusters",
        "(key @ centroids.mT)",
        "(query @ centroids.mT)",
        {
            "test-clusters": "cluster of the query at their place",
            "test-promises": "finds no key in its cluster",
        },
    ),
    Mutant(
        "the last T places in place of the last T keys",
        "wrong input",
        "clusters",
        "(from_the_end <= latest)",
        "(place > place[:, None] - latest)",
        {"test-clusters": "however far away they stand"},
    ),
    Mutant(
        "the largest score is not subtracted",
        "no largest score",
        "clusters",
        "torch.exp(scores - largest)",
        "torch.exp(scores)",
        {"test-promises": "subtract each row's largest"},
    ),
    Mutant(
        "a sum over the queries",
        "wrong axis",
        "clusters",
        "terms.sum(dim=-1, keepdim=True)",
        "terms.sum(dim=0)[:, None]",
        {"test-clusters": "divided by the sum of its row", "test-promises": "before place 9"},
    ),
    Mutant(
        "a row without keys divides by zero",
        "empty support",
        "clusters",
        ".clamp(min=1e-30)",
        "",
        {"test-clusters": "holds NaN", "test-promises": "should read zero"},
    ),
    Mutant(
        "the query reads before its own key is stored",
        "mask shifted by one",
        "stream",
        "keys, values = after[",
        "keys, values = state[",
        {"test-stream": "reads itself"},
    ),
    Mutant(
        "nothing is forgotten",
        "memory",
        "stream",
        "[-latest:]",
        "",
        {"test-stream": "reads something else"},
    ),
    Mutant(
        "all keys are kept, and the last T are read",
        "memory",
        "stream",
        """[-latest:] for old, new in joined)
    after = list(state)
    after[own] = kept
    keys, values = after[int((centroids @ query).argmax())]""",
        """ for old, new in joined)
    after = list(state)
    after[own] = kept
    keys, values = (x[-latest:] for x in after[int((centroids @ query).argmax())])""",
        {"test-stream": "holds more than T keys"},
    ),
    Mutant(
        "the given state is changed",
        "stale state",
        "stream",
        "after = list(state)",
        "after = state",
        {"test-fork": "changes the state it was given"},
    ),
    Mutant(
        "all keys are met equally often",
        "count",
        "exposing",
        "[[0, 0, 0], [0, 0, 1]]",
        "[[0, 0, 0], [1, 1, 1]]",
        {"test-exposing": "equally often"},
    ),
    Mutant(
        "equal scores",
        "scale",
        "exposing",
        "[1.0]])",
        "[0.0]])",
        {"test-exposing": "hold too much"},
    ),
    Mutant(
        "pairs are still counted twice",
        "count",
        "mended",
        "(scores - times.log())",
        "scores",
        {"test-mended": "still counts twice"},
    ),
    Mutant(
        "only keys that were met in all rounds",
        "wrong axis",
        "mended",
        "for same in met:",
        "for same in met.all(dim=0)[None]:",
        {"test-mended": "must be met in all"},
    ),
    Mutant(
        "the budget in blocks",
        "scale",
        "found",
        "128 // block_size",
        "min(128, 1024 // block_size)",
        {"test-found": "counted in keys"},
    ),
    Mutant(
        "the blocks with the smallest means",
        "sign",
        "found",
        "gates.topk(128 // block_size, dim=-1)",
        "gates.topk(128 // block_size, dim=-1, largest=False)",
        {"test-found": "LARGEST means"},
    ),
    Mutant(
        "three digits",
        "rounding",
        "rounds",
        "strangers = 1024 * (1 - (1 - 0.5**4) ** rounds)",
        "strangers = 330",
        {"test-rounds": "give six digits"},
    ),
    Mutant(
        "the nearest centroid",
        "wrong input",
        "clusters",
        """of_query = (query @ centroids.mT).argmax(dim=-1)
    of_key = (key @ centroids.mT).argmax(dim=-1)""",
        """of_query = torch.cdist(query, centroids).argmin(dim=-1)
    of_key = torch.cdist(key, centroids).argmin(dim=-1)""",
        {"test-clusters": "the one with the largest product"},
    ),
    Mutant(
        "a text that begins anew goes on with the last one",
        "stale state",
        "stream",
        """    if state is None:
        state =""",
        """    if state is not None:
        read_token.last = state
    elif hasattr(read_token, "last"):
        state = read_token.last
    else:
        state =""",
        {"test-fork": "still reads an earlier text"},
    ),
    Mutant(
        "a weight that nobody sees",
        "scale",
        "exposing",
        "[[0.0], [0.0], [1.0]]",
        "[[0.0], [0.0], [50.0]]",
        {"test-exposing": "below one millionth"},
    ),
    Mutant(
        "the blocks with the largest score",
        "wrong input",
        "found",
        ".mean(dim=-1)\n",
        ".amax(dim=-1)\n",
        {"test-found": "by their MEAN"},
    ),
    Mutant(
        "a stretch that lies across two blocks",
        "mask shifted by one",
        "found",
        """    scores[:, :stretch] += 1.5  # where it begins makes no difference to the noise
    gates = scores.unflatten(-1, (-1, block_size)).mean(dim=-1)
    best = gates.topk(128 // block_size, dim=-1).indices
    opened = torch.zeros_like(gates).scatter(-1, best, 1.0)
    return opened.repeat_interleave(block_size, dim=-1)[:, :stretch].mean().item()""",
        """    raised = slice(stretch // 4, stretch // 4 + stretch)
    scores[:, raised] += 1.5
    gates = scores.unflatten(-1, (-1, block_size)).mean(dim=-1)
    best = gates.topk(128 // block_size, dim=-1).indices
    opened = torch.zeros_like(gates).scatter(-1, best, 1.0)
    return opened.repeat_interleave(block_size, dim=-1)[:, raised].mean().item()""",
        {"test-found": "begin at a multiple"},
    ),
]
