"""Say where the built page is, and open it where there is a display."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> None:
    page = Path(sys.argv[1]).resolve()
    print(f"The book is at {page.as_uri()}")
    opener = opener_of_this_machine()
    if opener:
        subprocess.Popen([opener, str(page)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def opener_of_this_machine() -> str | None:
    if sys.platform == "darwin" and "SSH_CONNECTION" not in os.environ:
        return shutil.which("open")
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return shutil.which("xdg-open")
    return None


if __name__ == "__main__":
    main()
