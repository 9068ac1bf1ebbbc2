"""Typical wrong answers to the assignment on sinks, and the points that they lose."""

from assignment_cells import Mutant

NULL_IN_THE_LOOP = """    largest = null_logit[:, None, None].expand(*query.shape[:-1], 1)
    total = torch.ones_like(largest)
    read = torch.zeros_like(value)
    for start in range(0, key.shape[-2], block):
        here = slice(start, start + block)
        hidden = rows < torch.arange(key.shape[-2])[here]
        scores = query @ key[:, here].mT / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(hidden, -math.inf)
        new = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        terms, fade = torch.exp(scores - new), torch.exp(largest - new)
        total = fade * total + terms.sum(dim=-1, keepdim=True)
        read = fade * read + terms @ value[:, here]
        largest = new
    return read / total"""
NULL_AFTER_THE_LOOP = (
    NULL_IN_THE_LOOP.replace(
        "null_logit[:, None, None].expand(*query.shape[:-1], 1)",
        "torch.full_like(query[..., :1], -math.inf)",
    )
    .replace("torch.ones_like", "torch.zeros_like")
    .replace(
        "return read / total", "return read / (total + (null_logit[:, None, None] - largest).exp())"
    )
)

MUTANTS = [
    Mutant(
        "the drained value repeats what the others say",
        "sign",
        "drained",
        "drained = [-(1 - w0)",
        "drained = [(1 - w0)",
        {"test-drained": "not repeat it"},
    ),
    Mutant(
        "the drained value is not centered",
        "missing shift",
        "drained",
        "(each - shift)",
        "each",
        {"test-drained": "its mean under p is not zero"},
    ),
    Mutant(
        "the whole variance is left",
        "scale",
        "drained",
        "left = (1 - w0) ** 2 * variance / 2",
        "left = (1 - w0) ** 2 * variance",
        {"test-left": "half of the variance"},
    ),
    Mutant(
        "a second moment in the place of a variance",
        "missing shift",
        "drained",
        "variance = squares - sum(sum(a * b for a, b in zip(p, each)) ** 2 for each in apart) / 2",
        "variance = squares",
        {"test-left": "that is a second moment"},
    ),
    Mutant(
        "three digits",
        "rounded",
        "drained",
        "left = (1 - w0) ** 2 * variance / 2",
        "left = round((1 - w0) ** 2 * variance / 2, 3)",
        {"test-left": "give six digits"},
    ),
    Mutant(
        "one minus w0 falls as one over e^a",
        "approximation",
        "drained",
        "growth = others * (10 / (1 - w0) - 1) / 9",
        "growth = 10",
        {"test-left": "only where w0 is near one"},
    ),
    Mutant(
        "the null has the other sign",
        "sign",
        "null",
        "largest = null_logit",
        "largest = -null_logit",
        {
            "test-null": "the other sign",
            "test-blocks": "depends on",
            "test-range": "not right",
        },
    ),
    Mutant(
        "scores are divided by the width",
        "scale",
        "null",
        " / math.sqrt(query.shape[-1])",
        " / query.shape[-1]",
        {"test-null": "divided by D", "test-blocks": "depends on", "test-range": "not right"},
    ),
    Mutant(
        "the query's own key is hidden",
        "mask shifted by one",
        "null",
        "rows < torch.arange",
        "rows <= torch.arange",
        {
            "test-null": "the mask is shifted by one",
            "test-blocks": "depends on",
            "test-range": "not right",
        },
    ),
    Mutant(
        "only the null is taken off",
        "no largest score",
        "null",
        "new = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))",
        "new = largest",
        {"test-range": "scores near 1e4 overflow"},
    ),
    Mutant(
        "the null is added at the end, unprotected",
        "no largest score",
        "null",
        "    return read / total",
        "    null = null_logit[:, None, None]\n"
        "    total = total - torch.exp(null - largest)\n"
        "    return read / (total + torch.exp(null) * torch.exp(-largest))",
        {"test-range": "a null logit of 1e4 overflows"},
    ),
    Mutant(
        "terms are summed over the queries",
        "wrong axis",
        "null",
        "total = fade * total + terms.sum(dim=-1, keepdim=True)",
        "total = fade * total + terms.sum(dim=-2, keepdim=True).mean(-1, keepdim=True)",
        {
            "test-null": "which it may not see",
            "test-blocks": "depends on",
            "test-range": "not right",
        },
    ),
    Mutant(
        "the read of earlier blocks keeps its old largest score",
        "stale state",
        "null",
        "read = fade * read + terms",
        "read = read + terms",
        {
            "test-null": "with three blocks",
            "test-blocks": "depends on",
            "test-range": "not right",
        },
    ),
    Mutant(
        "the null enters with every block",
        "counted too often",
        "null",
        "total = fade * total + terms.sum(dim=-1, keepdim=True)",
        "total = fade * total + terms.sum(dim=-1, keepdim=True)"
        " + (start > 0) * torch.exp(null_logit[:, None, None] - new)",
        {"test-null": "once a block", "test-blocks": "depends on"},
    ),
    Mutant(
        "one block for everything",
        "whole table",
        "null",
        "    rows = torch.arange",
        "    block = key.shape[-2]\n    rows = torch.arange",
        {"test-blocks": "a whole table of scores"},
    ),
    Mutant(
        "the null is added after the loop, unknown to the largest score",
        "no largest score",
        "null",
        NULL_IN_THE_LOOP,
        NULL_AFTER_THE_LOOP,
        {"test-range": "a gradient is not finite, though the reads are"},
    ),
    Mutant(
        "row by row, a whole row of scores at once",
        "not in blocks",
        "null",
        "    rows = torch.arange",
        """    def row(i):
        scores = (key[:, : i + 1] @ query[:, i, :, None])[..., 0] / math.sqrt(query.shape[-1])
        scores = torch.cat((null_logit[:, None], scores), dim=1)
        terms = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        return (terms[:, 1:, None] * value[:, : i + 1]).sum(1) / terms.sum(1, keepdim=True)

    return torch.stack([row(i) for i in range(query.shape[1])], dim=1)
    rows = torch.arange""",
        {"test-blocks": "`block` is not used"},
    ),
    Mutant(
        "blocks of eight whatever is asked for",
        "not in blocks",
        "null",
        "    rows = torch.arange",
        "    block = 8\n    rows = torch.arange",
        {"test-blocks": "`block` is not used"},
    ),
    Mutant(
        "the newest token counts as empty",
        "mask shifted by one",
        "diagnosis",
        "sinks + window - (t + 1)",
        "sinks + window - t",
        {"test-diagnosis": "is in the cache already"},
    ),
    Mutant(
        "the sink is lost one token early",
        "mask shifted by one",
        "first-lost",
        "return sinks + window",
        "return sinks + window - 1",
        {"test-diagnosis": "still reads token 0"},
    ),
    Mutant(
        "the empty places stay",
        "half repaired",
        "repair",
        "filled = min(t + 1, places)",
        "filled = places",
        {"test-repaired": "empty places still take"},
    ),
    Mutant(
        "the sinks are still overwritten",
        "half repaired",
        "repair",
        "sinks + (t - sinks) % window",
        "t % places",
        {"test-repaired": "which it may not see"},
    ),
    Mutant(
        "the cache is a view of the text",
        "stale state",
        "repair",
        "kept_keys = key.new_zeros(places, key.shape[-1])",
        "kept_keys = key[:places]",
        {"test-repaired": "changes its input"},
    ),
    Mutant(
        "the whole text is at hand",
        "no cache",
        "repair",
        """        place = t if t < places else sinks + (t - sinks) % window
        kept_keys[place] = key[t]
        kept_values[place] = value[t]
        filled = min(t + 1, places)
""",
        """        here = [j for j in range(t + 1) if j < sinks or j > t - window]
        kept_keys, kept_values, filled = key[here], value[here], places
""",
        {"test-repaired": "read from the text again and again"},
    ),
    Mutant(
        "e^-b rises while e^-a falls",
        "sign",
        "by-hand",
        "-math.log(1 / 2 - 1 / 4)",
        "-math.log(1 / 2 + 1 / 4)",
        {"test-by-hand": "b rises from where it began"},
    ),
    Mutant(
        "equal rates are even",
        "scale",
        "by-hand",
        "even = 1 / 2",
        "even = 1",
        {"test-by-hand": "the null begins higher"},
    ),
    Mutant(
        "the sink climbs up the damage",
        "sign",
        "race",
        "da = -(a.exp()",
        "da = (a.exp()",
        {"test-race": "climbs up the damage"},
    ),
    Mutant(
        "the value's slope is taken behind the step",
        "stale state",
        "race",
        "dv0 = -(a.exp() / total)",
        "dv0 = -((a + da).exp() / total)",
        {"test-race": "taken at the same point"},
    ),
    Mutant(
        "the contexts are averaged before the damage",
        "wrong axis",
        "race",
        "r = (a.exp() * v0 + (n - 1) * u) / total",
        "r = (a.exp() * v0 + (n - 1) * u.mean(0, keepdim=True)) / total",
        {"test-race": "averaged before the damage"},
    ),
    Mutant(
        "the damages are added over the contexts",
        "scale",
        "race",
        "da, b + rate * db",
        "contexts * da, b + contexts * rate * db",
        {"test-race": "added up over the contexts"},
    ),
    Mutant(
        "n other keys",
        "off by one",
        "race",
        "total = a.exp() + b.exp() + n - 1\n        r = (a.exp() * v0 + (n - 1) * u) / total",
        "total = a.exp() + b.exp() + n\n        r = (a.exp() * v0 + n * u) / total",
        {"test-race": ""},
    ),
    Mutant(
        "one step too few",
        "off by one",
        "race",
        "range(steps)",
        "range(steps - 1)",
        {"test-race": "before the last step"},
    ),
    Mutant(
        "the weights of sink and null alone",
        "scale",
        "race",
        "    total = a.exp() + b.exp() + n - 1\n    return",
        "    total = a.exp() + b.exp()\n    return",
        {"test-race": "have a weight, too"},
    ),
    Mutant(
        "the null steps where the sink has moved already",
        "stale state",
        "race",
        "db = (b.exp() / total * (g * r).sum(-1)).mean()",
        "total = (a + da).exp() + b.exp() + n - 1\n"
        "        r = (n - 1) * u / total\n"
        "        g = (p.log() + r).softmax(dim=-1) - p\n"
        "        db = (b.exp() / total * (g * r).sum(-1)).mean()",
        {"test-race": "where the sink has moved already"},
    ),
    Mutant(
        "the second order of the damage",
        "approximation",
        "race",
        "g = (p.log() + r).softmax(dim=-1) - p",
        "g = p * (r - (p * r).sum(-1, keepdim=True))",
        {"test-race": "take the exact damage"},
    ),
    Mutant(
        "the value has the null's rate",
        "scale",
        "race",
        "v0 = v0 + dv0 if",
        "v0 = v0 + rate * dv0 if",
        {"test-race": "its own is one"},
    ),
]
