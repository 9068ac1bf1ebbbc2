"""What a run of the checks says: a table of promises, and an error when one is broken."""

from dataclasses import dataclass

HOLDS, BROKEN, NOT_CHECKED = "holds", "broken", "not checked"


class Broken(Exception):  # noqa: N818 - it is caught by the runner, which raises ConformanceError
    """One promise is broken; the message says how, for a student to understand."""


class NotChecked(Exception):  # noqa: N818 - no error: it tells the runner why a check does not apply
    """A promise cannot be checked here; the message says why."""


@dataclass(frozen=True)
class Row:
    """One promise, what became of it, and why."""

    promise: str
    status: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The promises of one function; printing it gives a table."""

    name: str
    rows: tuple[Row, ...]

    @property
    def broken(self) -> tuple[Row, ...]:
        """The promises that are broken."""
        return tuple(row for row in self.rows if row.status == BROKEN)

    @property
    def kept(self) -> tuple[Row, ...]:
        """The promises that hold."""
        return tuple(row for row in self.rows if row.status == HOLDS)

    def __str__(self) -> str:
        promise = max(len(row.promise) for row in self.rows)
        status = max(len(row.status) for row in self.rows)
        lines = [f"{self.name}: {len(self.kept)} of {len(self.rows)} promises checked and kept"]
        for row in self.rows:
            lines.append(f"  {row.promise:<{promise}}  {row.status:<{status}}  {row.note}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__


class ConformanceError(AssertionError):
    """Promises are broken; the message lists them, and `report` holds the whole table."""

    def __init__(self, report: Report):
        self.report = report
        lines = [f"{report.name} breaks {len(report.broken)} of its promises:"]
        lines += [f"- {row.promise}: {row.note}" for row in report.broken]
        super().__init__("\n".join(lines))
