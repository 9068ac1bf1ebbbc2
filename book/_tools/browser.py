"""Find the machine's Chromium, with which the site is tested and the PDF is printed."""

import os
import shutil
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPLICATIONS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)

MISSING = (
    "No Chromium or Chrome was found. Install one (Debian and Ubuntu: apt-get install chromium; "
    "macOS: brew install --cask chromium), or name yours: CHROMIUM=/path/to/chrome make ..."
)


def chromium() -> str | None:
    """The path of the browser: $CHROMIUM, a program on the path, or an application of macOS."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named
    found = [path for name in NAMES if (path := shutil.which(name))]
    found += [path for path in APPLICATIONS if Path(path).exists()]
    return found[0] if found else None
