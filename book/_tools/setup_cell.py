"""The setup cell: second cell of every notebook, the same in all of them but for the page's name.

`make run` writes it into every cell tagged `setup`. The address of the repository comes from
`_config.yml` and the edition from `pyproject.toml`, so each is written in one place only.

On Colab the cell fetches this edition of the book (the studies beside the chapter come with it),
installs attnlib without its dependencies, so that Colab keeps its own torch, adds what is missing
and prints the address of the built page. Everywhere it lets Triton kernels run in the interpreter
where there is no GPU; that must be decided before anything imports triton, and importing torch and
attnlib does not.
"""

import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]

CELL = """\
import os, subprocess, sys, torch
page = "{page}"
if "google.colab" in sys.modules and not os.path.exists("/content/book"):
    book = "{address}"
    get = f"git clone -q --depth 1 --branch {edition} {{book}} /content/book"
    install = "pip install -q --no-deps /content/book"  # Colab's own torch
    for command in (get, install, "pip install -q jaxtyping einops triton"):
        subprocess.run(command.split(), check=True)
    os.chdir("/content/book/" + os.path.dirname(page))
    print(f"Built: {site}/{{page}}.html")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run without a GPU
from attnlib import figures
torch.manual_seed(0)
figures.use_style()"""


def setup_cell(notebook: Path, root: Path = ROOT) -> str:
    """The text of the setup cell of the notebook at `notebook`; an assignment has its chapter's."""
    page = notebook.resolve().relative_to(root).with_suffix("").as_posix()
    page = page.replace("/assignments/", "/")
    address = repository_address(root)
    return CELL.format(page=page, address=address, edition=edition(root), site=site(address))


def repository_address(root: Path = ROOT) -> str:
    """`repository: url:` of `_config.yml`, without a slash at the end."""
    config = (root / "_config.yml").read_text(encoding="utf-8")
    block = re.search(r"^repository:[^\n]*\n((?:[ \t]+.*\n?)+)", config, re.M)
    found = block and re.search(r"^[ \t]+url:[ \t]*[\"']?([^\s\"'#]+)", block.group(1), re.M)
    if not found:
        raise ValueError("_config.yml: expected an address at repository.url, found none")
    return found.group(1).rstrip("/").removesuffix(".git")


def edition(root: Path = ROOT) -> str:
    """The tag of this edition, such as v0.1.0."""
    with open(root / "pyproject.toml", "rb") as file:
        return "v" + tomllib.load(file)["project"]["version"]


def site(address: str) -> str:
    """Where GitHub serves the pages of the repository at `address`."""
    owner, name = urlsplit(address).path.strip("/").split("/")[-2:]
    return f"https://{owner.lower()}.github.io/{name}"
