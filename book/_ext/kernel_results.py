"""The kernels: what the compiler says of each, and what was measured of each on which GPU.

Read from kernels/results: offline.json, which `kernels/offline_compile.py --write` makes, and one
file for each GPU, which `make gpu` makes. A result is old when the code that it is of has changed.
"""

import ast
import functools
import importlib.util
import json
from html import escape
from pathlib import Path

from book_data import ROOT
from kernel_times import measured

KERNELS = ROOT / "kernels"
CHIPS = {80: "A100", 86: "A10, RTX 30", 90: "H100, H200"}


def kernel_results(link) -> str:
    return page(KERNELS / "results")


def page(results: Path) -> str:
    """A summary with a line for each kernel, then a section for each."""
    compiled = json.loads((results / "offline.json").read_text(encoding="utf-8"))
    devices = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(results.glob("*.json"))
        if file.name != "offline.json"
    ]
    sections = "".join(
        section(name, entry, compiled["triton"], devices)
        for name, entry in compiled["kernels"].items()
    )
    return summary(compiled["kernels"], devices) + sections


def summary(kernels: dict, devices: list[dict]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><a href="#{name}"><code>{name}</code></a></th>'
        f"<td>{len(kernels[name]['launches'])}</td><td>{where_measured(name, devices)}</td></tr>"
        for name in kernels
    )
    return in_wrapper(
        "Kernels and where they were measured",
        '<table class="kernel-summary"><thead><tr><th scope="col">kernel</th>'
        '<th scope="col">compilations</th><th scope="col">measured on</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>",
    )


def where_measured(name: str, devices: list[dict]) -> str:
    found = [
        escape(device["device"]) + state_of(name, device["kernels"][name])
        for device in devices
        if name in device["kernels"]
    ]
    return ", ".join(found) or "no GPU yet"


def state_of(name: str, entry: dict) -> str:
    """What must be said beside the name of a GPU: red gates first, then an old file."""
    if entry["gates"] == "red":
        return " (gates red)"
    return "" if is_current(name, entry) else " (an earlier version)"


def section(name: str, compiled: dict, triton: str, devices: list[dict]) -> str:
    times = "".join(
        measured(device, device["kernels"][name], is_current(name, device["kernels"][name]))
        for device in devices
        if name in device["kernels"]
    )
    return (
        f'<section class="kernel" id="{name}"><h3><code>{name}</code></h3>'
        f"<p>{escape(first_sentence(name))} "
        f"Its file is <code>kernels/{name}.py</code>.</p>"
        f"{times or not_measured()}{compiler_report(name, compiled, triton)}</section>"
    )


def not_measured() -> str:
    return (
        '<p class="kernel-state"><strong>Not yet measured.</strong> No GPU has run this file.</p>'
    )


def first_sentence(name: str) -> str:
    """What the kernel computes: the first line of its file."""
    words = ast.get_docstring(ast.parse((KERNELS / f"{name}.py").read_text(encoding="utf-8")))
    return words.splitlines()[0]


def is_current(name: str, entry: dict) -> bool:
    return entry["source"] == hashes().kernel_hash(name)


@functools.cache
def hashes():
    """kernels/code_hash.py, which needs no torch, taken from its file."""
    spec = importlib.util.spec_from_file_location("code_hash", KERNELS / "code_hash.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler_report(name: str, compiled: dict, triton: str) -> str:
    """One line, and folded away a row for each chip and a row for each launch."""
    launches = compiled["launches"]
    chips = sorted({launch["chip"] for launch in launches})
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("chip", "most shared memory", "most registers", "spilled", "compilations")
    )
    rows = "".join(chip_row(chip, [x for x in launches if x["chip"] == chip]) for chip in chips)
    old = (
        ""
        if compiled["source"] == hashes().launches_hash(name)
        else stale("The file has changed since it was compiled for this table.")
    )
    return (
        f"{old}<details><summary>{compiled_in_short(launches, chips)}</summary>"
        f"<p>Compiled by Triton {escape(triton)}, on a machine without a GPU. KiB are of shared "
        "memory.</p>"
        + in_wrapper(
            f"What {name} needs on each chip",
            f'<table class="numbers kernel-chips"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table>",
        )
        + f"{launch_table(name, launches, chips)}</details>"
    )


def compiled_in_short(launches: list[dict], chips: list[int]) -> str:
    fine = [launch for launch in launches if not launch["error"]]
    broken = len(launches) - len(fine)
    most_registers = max((launch["registers"] for launch in fine), default=0)
    most_spilled = max((launch["spilled"] for launch in fine), default=0)
    return (
        f"Compiled for {len(chips)} chip{'s' * (len(chips) > 1)}: at most {most_registers} "
        f"registers, {f'up to {spilled(most_spilled)}' if most_spilled else 'none'} spilled"
        + (f", {broken} of {len(launches)} compilations refused" if broken else "")
    )


def chip_row(chip: int, launches: list[dict]) -> str:
    fine = [launch for launch in launches if not launch["error"]]
    broken = len(launches) - len(fine)
    count = f"{len(launches)}, {broken} of them refused" if broken else f"{len(launches)}"
    return (
        f'<tr><th scope="row">sm_{chip} <span class="chip-name">{CHIPS[chip]}</span></th>'
        f"<td>{shared(max((x['shared'] for x in fine), default=0), launches[0])}</td>"
        f"<td>{max((x['registers'] for x in fine), default=0)}</td>"
        f"<td>{spilled(max((x['spilled'] for x in fine), default=0))}</td><td>{count}</td></tr>"
    )


def spilled(count: int) -> str:
    return f"{count:,} bytes" if count else "none"


def shared(used: int, launch: dict) -> str:
    """How much of what the chip has, and a bar of that share."""
    limit = launch["shared_limit"]
    share = min(100, 100 * used / limit)
    over = " over" if used > limit else ""
    return (
        f"{memory(used)} of {memory(limit)}"
        f'<span class="share{over}" aria-hidden="true"><span style="width:{share:.1f}%"></span>'
        "</span>"
    )


def memory(count: int) -> str:
    return f"{count / 1024:.0f} KiB" if count >= 1024 or not count else f"{count} bytes"


def launch_table(name: str, launches: list[dict], chips: list[int]) -> str:
    """A row for each launch, some columns for each chip: what no launch spills has no column."""
    found: dict[str, dict] = {}
    for launch in launches:
        plain = launch["launch"].removesuffix(f", sm_{launch['chip']}")
        found.setdefault(plain, {})[launch["chip"]] = launch
    columns = ["registers", "spilled", "KiB"]
    if not any(launch.get("spilled") for launch in launches):
        columns.remove("spilled")
    groups = "".join(
        f'<th scope="colgroup" colspan="{len(columns)}">sm_{chip}</th>' for chip in chips
    )
    heads = "".join(f'<th scope="col">{head}</th>' for _ in chips for head in columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(launch_cells(by_chip.get(chip), columns) for chip in chips)
        + "</tr>"
        for label, by_chip in found.items()
    )
    return in_wrapper(
        f"Compilations of {name}",
        '<table class="numbers kernel-launches"><thead><tr><th scope="col" rowspan="2">launch</th>'
        f"{groups}</tr><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>",
    )


def launch_cells(launch: dict | None, columns: list[str]) -> str:
    if launch is None or launch["error"]:
        said = "refused" if launch else "not for this chip"
        return f'<td colspan="{len(columns)}">{said}</td>'
    numbers = {
        "registers": launch["registers"],
        "spilled": launch["spilled"] or "",
        "KiB": f"{launch['shared'] / 1024:.0f}",
    }
    return "".join(f"<td>{numbers[column]}</td>" for column in columns)


def stale(sentence: str) -> str:
    return f'<p class="kernel-state old"><strong>Old.</strong> {sentence}</p>'


def in_wrapper(label: str, table: str) -> str:
    """A table that scrolls inside itself on a narrow screen."""
    return (
        f'<div class="table-wrapper" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"{table}</div>"
    )
