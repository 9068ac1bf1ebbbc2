"""Print the whole book as one PDF: build a single page, then let Chromium print it."""

import shutil
import subprocess
import sys
from pathlib import Path

from browser import MISSING, chromium
from playwright.sync_api import sync_playwright

SINGLE = Path("_build/singlehtml")
TARGET = Path("_build/html/book.pdf")


def main() -> None:
    browser = chromium()
    if browser is None:
        sys.exit(MISSING)
    build_single_page()
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    print_page(browser, single_page(), TARGET)
    size = TARGET.stat().st_size / 1e6
    print(f"The PDF is at {TARGET} ({size:.1f} MB). `make book` links it.")


def build_single_page() -> None:
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    subprocess.run([jupyter_book, "build", ".", "--builder", "singlehtml", "--quiet"], check=True)


def single_page() -> Path:
    """The page, beside its static files: the builder leaves it a folder too deep."""
    page = SINGLE / "whole-book.html"
    shutil.copyfile(SINGLE / "book" / "index.html", page)
    return page


def print_page(browser: str, page: Path, target: Path) -> None:
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        tab = instance.new_page(color_scheme="light")
        tab.goto(page.resolve().as_uri(), wait_until="networkidle")
        tab.evaluate("() => window.MathJax.startup.promise")
        margins = {side: "18mm" for side in ("top", "bottom", "left", "right")}
        tab.pdf(
            path=target,
            format="A4",
            margin=margins,
            outline=True,
            tagged=True,
            print_background=True,
        )
        instance.close()


if __name__ == "__main__":
    main()
