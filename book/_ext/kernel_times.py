"""The times of one kernel on one GPU: bars beside the bound, and a table of all numbers.

A bar is bound / time: the share of what the chip allows. The bound is at the right edge, the same
for every case, so that a wide bar is a fast kernel.
"""

from html import escape

OURS = "this kernel"
COLUMNS = (
    "case",
    "dtype",
    "pass",
    "kernel (ms)",
    "GB/s",
    "TFLOP/s",
    "bound (ms)",
    "set by",
    "share of bound",
)


def measured(device: dict, entry: dict, current: bool) -> str:
    """The section of one GPU under a kernel."""
    head = f"<h4>{escape(device['device'])}</h4>{facts(device, entry)}"
    if not current:
        head += (
            '<p class="kernel-state old"><strong>Old.</strong> These times are of an earlier '
            "version of the file. Its code has changed since.</p>"
        )
    if entry["gates"] == "red":
        listed = "".join(f"<li>{escape(failure)}</li>" for failure in entry["failures"][:5])
        return (
            f'{head}<p class="kernel-state old"><strong>Gates are red</strong> on this GPU '
            f"({len(entry['failures'])}), so there are no times.</p><ul>{listed}</ul>"
        )
    timed = [row for row in entry["times"] if "error" not in row]
    if not timed:
        return f"{head}{reasons(entry['times'])}"
    return (
        f"{head}<p>{in_short(timed)}</p>{figure(timed)}"
        f"<details><summary>All times</summary>{table(timed)}{reasons(entry['times'])}</details>"
    )


def facts(device: dict, entry: dict) -> str:
    """The roof of this GPU, the versions, the day."""
    rates = ", ".join(
        f"{rate / 1e12:.0f} in {escape(dtype)}"
        for dtype, rate in device["matrix_operations_per_second"].items()
    )
    return (
        f'<p class="kernel-facts">Measured {escape(entry["date"])} with torch '
        f"{escape(device['torch'])}, Triton {escape(device['triton'])}, "
        f"CUDA {escape(str(device['cuda']))}. Copies {device['copy_bytes_per_second'] / 1e12:.2f} "
        f"TB/s; matrix products, TFLOP/s: {rates}.</p>"
    )


def in_short(rows: list[dict]) -> str:
    """The range of shares and of ratios to the fastest peer, in the first dtype."""
    rows = drawn(rows)
    shares = [100 / row["times_the_bound"] for row in rows]
    ratios = [ratio for row in rows if (ratio := to_fastest_peer(row))]
    words = f"In {rows[0]['dtype']} it reaches {span(shares, '.0f')} % of the bound"
    if ratios:
        words += f" and is {span(ratios, '.2f')} times as fast as the fastest other form"
    return words + "."


def drawn(rows: list[dict]) -> list[dict]:
    """The rows of the first dtype: what the figure shows."""
    return [row for row in rows if row["dtype"] == rows[0]["dtype"]]


def to_fastest_peer(row: dict) -> float | None:
    times = [peer["ms"] for peer in row["peers"].values() if "ms" in peer]
    return min(times) / row["kernel_ms"] if times else None


def span(numbers: list[float], form: str) -> str:
    low, high = format(min(numbers), form), format(max(numbers), form)
    return low if low == high else f"{low} to {high}"


def figure(rows: list[dict]) -> str:
    rows = drawn(rows)
    panels = "".join(panel(row) for row in rows)
    return (
        f'<figure class="kernel-bars"><div class="panels">{panels}</div><figcaption>'
        f"Share of what the chip allows, bound / time, in {escape(rows[0]['dtype'])}. "
        "The line at the right is the bound; a wider bar is faster.</figcaption></figure>"
    )


def panel(row: dict) -> str:
    """One case and pass: a bar for the kernel and for each peer."""
    bars = bar(OURS, row["kernel_ms"], row["bound_ms"], "ours") + "".join(
        bar(name, peer["ms"], row["bound_ms"], "peer") if "ms" in peer else no_bar(name)
        for name, peer in row["peers"].items()
    )
    return (
        f'<table class="bars"><caption>{escape(row["case"])}, {row["pass"]}</caption>'
        f"<tbody>{bars}</tbody></table>"
    )


def bar(name: str, milliseconds: float, bound: float, kind: str) -> str:
    share = 100 * bound / milliseconds
    return (
        f'<tr class="{kind}"><th scope="row">{escape(name)}</th>'
        f'<td class="bar"><span style="width:{min(100, share):.1f}%"></span></td>'
        f"<td>{short(milliseconds)} ms</td></tr>"
    )


def no_bar(name: str) -> str:
    return (
        f'<tr class="peer"><th scope="row">{escape(name)}</th>'
        '<td class="none" colspan="2">does not run here</td></tr>'
    )


def short(milliseconds: float) -> str:
    """Three digits, and no more of them than a clock gives."""
    digits = (
        0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3
    )
    return f"{milliseconds:.{digits}f}"


def table(rows: list[dict]) -> str:
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    heads = "".join(
        f'<th scope="col">{escape(head)}</th>'
        for head in (*COLUMNS, *(f"{name} (ms)" for name in peers))
    )
    body = "".join(table_row(row, peers) for row in rows)
    return (
        '<div class="table-wrapper" tabindex="0" role="region" aria-label="All times">'
        f'<table class="numbers kernel-times"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def table_row(row: dict, peers: list[str]) -> str:
    cells = [
        row["dtype"],
        row["pass"],
        short(row["kernel_ms"]),
        f"{row['gigabytes_per_second']:.0f}",
        f"{row['teraflops']:.0f}" if row["operations"] else "",
        short(row["bound_ms"]),
        row["bound_by"],
        f"{100 / row['times_the_bound']:.0f} %",
        *(peer_time(row["peers"].get(name, {})) for name in peers),
    ]
    written = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(row["case"])}</th>{written}</tr>'


def peer_time(peer: dict) -> str:
    return short(peer["ms"]) if "ms" in peer else "no"


def reasons(rows: list[dict]) -> str:
    """Why something has no time, each reason once, with the dtypes that it is about."""
    found: dict[tuple[str, str], dict] = {}
    for row in rows:
        missing = {OURS: row} if "error" in row else row["peers"]
        for name, time in missing.items():
            if "error" in time:
                found.setdefault((name, time["error"]), {})[row["dtype"]] = True
    listed = "".join(
        f"<li>{escape(name)}, {', '.join(dtypes)}: {escape(error)}</li>"
        for (name, error), dtypes in found.items()
    )
    return f"<p>What has no time, and why:</p><ul>{listed}</ul>" if listed else ""
