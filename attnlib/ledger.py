"""The ledger: claims of papers, tested on the page, with a verdict that the data must confirm.

    from attnlib.ledger import behaviour, claim, identity

    claim(
        paper="vaswani-2017",
        where="section 3.2.1",
        says="Dot products of long vectors grow large in magnitude.",
        tests="The variance of q·k is D for unit-variance entries.",
        measured=identity(error, tolerance=1e-12, of="largest difference from D"),
        verdict="holds",
    )

shows a card with four separate fields (what the paper says, what we test, what we measured, the
verdict) and raises `ClaimError` where the verdict recorded is not the one the data give.

What a card stores. Its output has the MIME types text/html, text/markdown, text/plain and
`application/vnd.attnlib.claim+json`; the last holds one object:

    format    1
    paper     key in attnlib/papers.csv
    title, citation, link, level   of that paper, as text (link may be empty)
    where     section or equation of the paper, or null
    says, tests                    plain text
    type      "identity" | "behaviour" | "illustration" | null (null: not testable here)
    verdict   one of VERDICTS, or null for an illustration (which does not count)
    symbol    the sign of the verdict (it differs by shape)
    reason    why, or null
    anchor    id of the card's HTML element
    parts     list of objects, one for each measurement:
                kind      "identity" | "behaviour" | "illustration"
                of        what was measured, plain text
                measured  the sentence shown on the card
                holds     true | false | null (illustration)
                identity:     error, tolerance
                behaviour:    effects (one per seed), expect, mean, spread, control (list or null),
                              control_mean
                illustration: value (number or text)

`claims_of(notebook)` reads these back. This file needs the standard library only, so the build of
the site loads it by its path, without attnlib or torch.
"""

import json
import math
from dataclasses import dataclass
from statistics import mean, stdev

MIME = "application/vnd.attnlib.claim+json"
HOLDS = "holds"
IN_PART = "holds in part"
NOT_REPRODUCED = "not reproduced at this scale"
NOT_TESTABLE = "not testable here"
SYMBOLS = {HOLDS: "●", IN_PART: "◐", NOT_REPRODUCED: "○", NOT_TESTABLE: "◇", None: "△"}
VERDICTS = (HOLDS, IN_PART, NOT_REPRODUCED, NOT_TESTABLE)
LEAST_SEEDS = 3


class ClaimError(AssertionError):
    """The verdict recorded is not the one that the data give."""


@dataclass(frozen=True)
class Identity:
    """An exact property: holds if and only if error <= tolerance."""

    error: float
    tolerance: float
    of: str
    kind = "identity"

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance

    @property
    def measured(self) -> str:
        return f"{self.of}: {number(self.error)} (tolerance {number(self.tolerance)})"

    def why_not(self) -> str:
        return f"the error {self.error:.3g} is above the tolerance {self.tolerance:.3g}"

    def facts(self) -> dict:
        return {"error": six_digits(self.error), "tolerance": six_digits(self.tolerance)}


@dataclass(frozen=True)
class Behaviour:
    """What training or data show, one effect per seed, against a negative control.

    The effect is shown if every seed lies on the expected side of zero and |mean| > 2 spread, where
    spread is the sample standard deviation between seeds. The control may not show it: for the
    control the same rule is read with the larger of the two spreads, its mean must stay below half
    the effect's, and its spread below the effect. The part holds if the effect is shown and the
    control does not show it.
    """

    effects: tuple[float, ...]
    control: tuple[float, ...] | None
    expect: str
    of: str
    kind = "behaviour"

    @property
    def spread(self) -> float:
        return stdev(self.effects)

    @property
    def shown(self) -> bool:
        return self._shows(self.effects, self.spread)

    @property
    def control_shows_it(self) -> bool:
        if self.control is None:
            return False
        sign = 1 if self.expect == "positive" else -1
        half = sign * mean(self.effects) / 2
        if sign * mean(self.control) >= half or stdev(self.control) >= 2 * half:
            return True  # too near to the effect, or too noisy to tell
        return self._shows(self.control, max(self.spread, stdev(self.control)))

    def _shows(self, effects: tuple[float, ...], spread: float) -> bool:
        sign = 1 if self.expect == "positive" else -1
        return all(sign * effect > 0 for effect in effects) and abs(mean(effects)) > 2 * spread

    @property
    def holds(self) -> bool:
        return self.shown and not self.control_shows_it

    @property
    def measured(self) -> str:
        places = decimals(self.spread)
        text = f"{self.of}: mean {number(mean(self.effects), places)}"
        text += f", spread {number(self.spread, places)} over {len(self.effects)} seeds"
        if self.control is not None:
            text += f"; negative control {number(mean(self.control), places)}"
        return text

    def why_not(self) -> str:
        if self.shown:
            return f"the negative control shows the effect too: {_listed(self.control)}"
        return (
            f"expected {self.expect} effects in every seed and |mean| > 2 spread, "
            f"got {_listed(self.effects)}: mean {mean(self.effects):.3g}, spread {self.spread:.3g}"
        )

    def facts(self) -> dict:
        control = self.control
        return {
            "effects": [six_digits(effect) for effect in self.effects],
            "expect": self.expect,
            "mean": six_digits(mean(self.effects)),
            "spread": six_digits(self.spread),
            "control": control and [six_digits(effect) for effect in control],
            "control_mean": control and six_digits(mean(control)),
        }


@dataclass(frozen=True)
class Illustration:
    """A worked example: shown, never judged, not counted."""

    value: float | str
    of: str
    kind = "illustration"
    holds = None

    @property
    def measured(self) -> str:
        value = self.value if isinstance(self.value, str) else number(self.value)
        return f"{self.of}: {value}"

    def facts(self) -> dict:
        return {"value": self.value if isinstance(self.value, str) else six_digits(self.value)}


Evidence = Identity | Behaviour | Illustration


def identity(error, tolerance: float, of: str = "largest difference") -> Identity:
    """Evidence for an equation: `error` (a scalar of any library) against `tolerance`."""
    error, tolerance = scalar("error", error), scalar("tolerance", tolerance)
    if error < 0 or tolerance < 0:
        raise ValueError(f"error and tolerance: expected >= 0, got {error} and {tolerance}")
    return Identity(error, tolerance, of)


def behaviour(effects, *, of: str, control=None, expect: str = "positive") -> Behaviour:
    """Evidence from seeds: one effect per seed, and per seed the effect in the negative control.

    An effect is a difference that the paper says is positive (or negative): with minus without,
    or a value minus the threshold that the paper states.
    """
    if expect not in ("positive", "negative"):
        raise ValueError(f"expect: expected 'positive' or 'negative', got {expect!r}")
    return Behaviour(
        seeds("effects", effects),
        None if control is None else seeds("control", control),
        expect,
        of,
    )


def illustration(value, of: str) -> Illustration:
    """What a worked example shows: a number or a few words."""
    return Illustration(value if isinstance(value, str) else scalar("value", value), of)


def scalar(name: str, value) -> float:
    """`value` as a float; a Python, NumPy or torch scalar."""
    try:
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected one number, got {value!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return value


def seeds(name: str, values) -> tuple[float, ...]:
    """One finite number for each of at least three seeds."""
    numbers = tuple(scalar(name, value) for value in values)
    if len(numbers) < LEAST_SEEDS:
        raise ValueError(f"{name}: expected at least {LEAST_SEEDS} seeds, got {len(numbers)}")
    return numbers


@dataclass(frozen=True)
class Claim:
    """A claim of a paper with what we measured; its verdict agrees with the data."""

    paper: str
    title: str
    citation: str
    link: str
    level: str
    where: str | None
    says: str
    tests: str
    parts: tuple[Evidence, ...]
    verdict: str | None
    reason: str | None

    @property
    def type(self) -> str | None:
        kinds = [part.kind for part in self.parts]
        return "behaviour" if "behaviour" in kinds else kinds[0] if kinds else None

    def facts(self) -> dict:
        """The object stored as `application/vnd.attnlib.claim+json`."""
        named = ("paper", "title", "citation", "link", "level", "where", "says", "tests")
        facts = {"format": 1} | {name: getattr(self, name) for name in named}
        facts |= {"type": self.type, "verdict": self.verdict, "symbol": SYMBOLS[self.verdict]}
        facts |= {"reason": self.reason, "anchor": _anchor(self.paper, self.says)}
        facts["parts"] = [
            {"kind": p.kind, "of": p.of, "measured": p.measured, "holds": p.holds, **p.facts()}
            for p in self.parts
        ]
        return facts


def claim(
    *,
    paper: str,
    says: str,
    tests: str,
    measured: Evidence | list[Evidence] = (),
    verdict: str | None = None,
    where: str | None = None,
    reason: str | None = None,
) -> None:
    """Shows the card of a claim; raises if `verdict` is not the one that the data give.

    `paper` is a key of attnlib/papers.csv. `measured` is one piece of evidence or a list of them.
    All hold: "holds"; some: "holds in part"; none: "not reproduced at this scale". Without evidence
    the verdict is "not testable here", with a `reason`. An illustration has no verdict.
    """
    from attnlib.claim_card import show

    show(judged(paper, says, tests, measured, verdict, where, reason).facts())


def judged(paper, says, tests, measured=(), verdict=None, where=None, reason=None) -> Claim:
    """The claim, once its recorded verdict is seen to agree with its evidence."""
    from attnlib.papers import load

    source = load()[paper]
    parts = (measured,) if isinstance(measured, Evidence) else tuple(measured)
    for part in parts:
        if not isinstance(part, Evidence):
            raise TypeError(
                "measured: expected identity(...), behaviour(...) or illustration(...), "
                f"got {type(part).__name__}"
            )
        if part.kind == "behaviour" and part.control is None and source.level != "aside":
            raise ValueError(
                f"control: {paper} is a {source.level} paper, so a behaviour needs a negative "
                "control, one effect per seed where the paper says it must vanish"
            )
    _check_verdict(paper, parts, verdict, reason)
    texts = (where, says, tests)
    cited = (paper, source.title, source.cite, source.url, source.level)
    return Claim(*cited, *texts, parts, verdict, reason)


def _check_verdict(paper: str, parts: tuple, verdict: str | None, reason: str | None) -> None:
    found = verdict_of(parts)
    if found == NOT_TESTABLE and not reason:
        raise ValueError(f"reason: {paper} has nothing measured; say why it is not testable here")
    if verdict is not None and verdict not in VERDICTS:
        raise ValueError(f"verdict: expected one of {', '.join(VERDICTS)}, got {verdict!r}")
    if found == verdict:
        return
    if found is None:
        raise ValueError(f"verdict: an illustration has none, got {verdict!r}")
    failing = [f"  {part.of}: {part.why_not()}" for part in parts if not part.holds]
    raise ClaimError(
        "\n".join([f"{paper}: recorded is {verdict!r}, the data say {found!r}", *failing])
    )


def verdict_of(parts: tuple[Evidence, ...]) -> str | None:
    """The verdict that the evidence gives; None for illustrations."""
    if not parts:
        return NOT_TESTABLE
    kinds = {part.kind for part in parts}
    if "illustration" in kinds:
        if len(kinds) > 1:
            raise ValueError("measured: an illustration cannot be mixed with tested evidence")
        return None
    held = [part.holds for part in parts]
    return HOLDS if all(held) else IN_PART if any(held) else NOT_REPRODUCED


def claims_of(notebook: dict) -> list[dict]:
    """The claims stored in a notebook (its parsed JSON), each with the id of its cell."""
    found = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            stored = output.get("data", {}).get(MIME)
            if stored is not None:
                facts = json.loads("".join(stored)) if isinstance(stored, str | list) else stored
                found.append({**facts, "cell": cell.get("id")})
    return found


def six_digits(value: float) -> float:
    """`value` to six significant digits, as it is stored."""
    return float(f"{value:.6g}")


def decimals(spread: float) -> int | None:
    """Decimal places at which `spread` shows two digits."""
    if spread == 0 or not 1e-5 < spread < 1e5:
        return None
    return max(0, 1 - math.floor(math.log10(spread)))


def number(value: float, places: int | None = None) -> str:
    """`value` in print: three digits, powers of ten written out, a true minus sign."""
    if places is not None:
        text = f"{value:.{places}f}"
    elif value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    else:
        digits, exponent = f"{value:.1e}".split("e")
        digits = digits.removesuffix(".0")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"10{power}" if digits == "1" else f"{digits} × 10{power}"
    return text.replace("-", "−")


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _anchor(paper: str, says: str) -> str:
    """An id for the card: the paper and a short checksum of the sentence."""
    return f"claim-{paper}-{sum(i * ord(c) for i, c in enumerate(says, 1)) % 46656:x}"
