"""Where the built site is, and which pages the book has."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"


def page_names() -> list[str]:
    """The pages of the book, without the ones that the builder adds for itself."""
    found = [path.relative_to(SITE).with_suffix("").as_posix() for path in SITE.glob("*/**/*.html")]
    return sorted(name for name in found if not name.startswith("_"))
