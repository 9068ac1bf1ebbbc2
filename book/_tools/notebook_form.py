"""The normal form of a stored notebook, and when two outputs are the same.

Normal form: fixed kernelspec, cell ids `<stem>-<nnn>`, only the cell metadata that the book reads,
neighboring streams merged, progress bars reduced to their last state, no widget state, addresses
of objects masked, indent 1, a newline at the end. A second run then changes only what differs.
"""

import base64
import io
import json
import re
from pathlib import Path

from setup_cell import ROOT, setup_cell

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_METADATA = {"tags", "mystnb", "nbgrader"}
WIDGETS = {"application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"}
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])", re.I)
BASE64 = re.compile(r"[A-Za-z0-9+/]{200,}={0,2}")


def read(path: Path) -> dict:
    """The notebook at `path`; every source and every text of an output as one string."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = _joined(cell["source"])
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = _joined(output["text"])
            for mime, value in output.get("data", {}).items():
                if not mime.endswith("json"):
                    output["data"][mime] = _joined(value)
    return notebook


def _joined(text) -> str:
    return "".join(text) if isinstance(text, list) else text


def text_of(notebook: dict) -> str:
    """The bytes that are stored: lines of text as lists, indent 1, a newline at the end."""

    def lined(value):
        return value.splitlines(keepends=True) if isinstance(value, str) else value

    cells = []
    for cell in notebook["cells"]:
        cell = {**cell, "source": lined(cell["source"])}
        if "outputs" in cell:
            cell["outputs"] = [dict(output) for output in cell["outputs"]]
            for output in cell["outputs"]:
                if "text" in output:
                    output["text"] = lined(output["text"])
                if "data" in output:
                    output["data"] = {
                        mime: value if mime.endswith("json") else lined(value)
                        for mime, value in output["data"].items()
                    }
        cells.append(cell)
    stored = {**notebook, "cells": cells}
    return json.dumps(stored, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def normal_form(notebook: dict, path: Path, root: Path = ROOT) -> dict:
    """A copy of `notebook` in normal form; the setup cell gets its present text."""
    cells = [_normal_cell(cell, f"{path.stem}-{i:03d}") for i, cell in enumerate(notebook["cells"])]
    for cell in cells:
        if "setup" in tags(cell):
            cell["source"] = setup_cell(path, root)
    metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    if "attn" in notebook["metadata"]:
        metadata["attn"] = notebook["metadata"]["attn"]
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def tags(cell: dict) -> list[str]:
    """The tags of a cell."""
    return cell["metadata"].get("tags", [])


def _normal_cell(cell: dict, name: str) -> dict:
    metadata = {k: v for k, v in cell["metadata"].items() if k in CELL_METADATA and v}
    if cell["metadata"].get("jupyter", {}).get("source_hidden"):
        metadata["jupyter"] = {"source_hidden": True}
    normal = {"cell_type": cell["cell_type"], "id": name, "metadata": metadata}
    normal["source"] = cell["source"].strip("\n")
    if cell["cell_type"] == "code":
        normal["execution_count"] = cell.get("execution_count")
        normal["outputs"] = _normal_outputs(cell.get("outputs", []))
    elif cell.get("attachments"):
        normal["attachments"] = cell["attachments"]
    return normal


def _normal_outputs(outputs: list[dict]) -> list[dict]:
    normal = []
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream":
            text = _masked(_last_states(output["text"]))
            last = normal[-1] if normal else {}
            if last.get("output_type") == "stream" and last["name"] == output["name"]:
                last["text"] += text
            elif text:
                normal.append({"name": output["name"], "output_type": kind, "text": text})
        elif kind == "error":
            message = f"{output['ename']}: {output['evalue']}"
            normal.append({**output, "evalue": _masked(output["evalue"]), "traceback": [message]})
        else:
            data = {
                mime: _masked(value) if mime.startswith("text/") else value
                for mime, value in output["data"].items()
                if mime not in WIDGETS
            }
            if data:
                normal.append({**output, "data": data, "metadata": output.get("metadata", {})})
    return normal


def _last_states(text: str) -> str:
    """What a terminal shows of `text`: a carriage return goes back over the line."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def _masked(text: str) -> str:
    return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", text)


def same_outputs(old: list[dict], new: list[dict]) -> bool:
    """Whether two lists of outputs show the same to six digits and to the eye."""
    return len(old) == len(new) and all(map(_same_output, old, new))


def _same_output(old: dict, new: dict) -> bool:
    if old["output_type"] != new["output_type"] or old.get("name") != new.get("name"):
        return False
    if "text" in old:
        return same_text(old["text"], new["text"])
    if "data" not in old:
        return old["ename"] == new["ename"] and same_text(old["evalue"], new["evalue"])
    if old["data"].keys() != new["data"].keys():
        return False
    return all(_same_data(old["data"][mime], new["data"][mime], mime) for mime in old["data"])


def _same_data(old, new, mime: str) -> bool:
    if mime.startswith("image/") and isinstance(old, str) and mime != "image/svg+xml":
        return same_bytes(base64.b64decode(old), base64.b64decode(new))
    if not isinstance(old, str):
        old, new = json.dumps(old, sort_keys=True), json.dumps(new, sort_keys=True)
    return same_text(old, new)


def same_text(old: str, new: str) -> bool:
    """Equal words, numbers equal to six digits, pictures inside equal to the eye."""
    if old == new:
        return True
    pictures = [[base64.b64decode(x + "===") for x in BASE64.findall(t)] for t in (old, new)]
    if len(pictures[0]) != len(pictures[1]) or not all(map(same_bytes, *pictures)):
        return False
    old, new = (BASE64.sub("picture", text) for text in (old, new))
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return False
    return all(map(_same_number, NUMBER.findall(old), NUMBER.findall(new)))


def _same_number(old: str, new: str) -> bool:
    if old == new:
        return True
    a, b = (float(text.replace("−", "-")) for text in (old, new))
    return abs(a - b) <= max(1e-6 * max(abs(a), abs(b)), 1e-12)


def same_bytes(old: bytes, new: bytes) -> bool:
    """Pictures: under one pixel in a thousand differs visibly. Arrays: by one level at most."""
    if old == new:
        return True
    if not (old.startswith(b"\x89PNG") and new.startswith(b"\x89PNG")):
        return len(old) == len(new) and max(abs(a - b) for a, b in zip(old, new, strict=True)) <= 1
    from PIL import Image, ImageChops

    first, second = (Image.open(io.BytesIO(data)).convert("RGBA") for data in (old, new))
    if first.size != second.size:
        return False
    difference = ImageChops.difference(first, second)
    strongest = difference.getchannel(0)
    for channel in (1, 2, 3):
        strongest = ImageChops.lighter(strongest, difference.getchannel(channel))
    visible = sum(strongest.histogram()[9:])
    return visible * 1000 < first.size[0] * first.size[1]
