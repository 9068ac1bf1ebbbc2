"""The one style of every figure: sizes, type, ink, and the colors of the five steps.

Figures are drawn in dark ink, and their white is stored as transparent (`stored.py`). In the dark
theme the book inverts the picture and turns the hue back, so that one file serves both:
`filter: invert(1) hue-rotate(180deg)`.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

# The palette of Okabe and Ito, one hue a step. The style sheet of the site reads the same file.
STEP_COLORS: dict[str, str] = json.loads(
    Path(__file__).with_name("palette.json").read_text(encoding="utf-8")
)

INK = "#1B1F24"
QUIET_INK = "#59616B"  # frames, ticks and remarks: still readable, never the loudest thing

# Lines that share a plot take these in turn: the hues of the palette, the two palest of them
# darkened to a contrast of 3. Dashes and markers tell lines apart where color cannot.
LINE_COLORS = ["#0072B2", "#D55E00", "#009E73", "#B16C94", "#B87F00"]
LINE_DASHES = ["-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)), (0, (9, 2.5))]
LINE_MARKERS = ["o", "s", "^", "D", "v"]

WIDTH = 6.5  # inches, the text column

STYLE = {
    "figure.figsize": (WIDTH, 3.4),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "legend.frameon": False,
    # Both families come with matplotlib, so every machine draws the same letters.
    "font.family": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": QUIET_INK,
    "xtick.color": QUIET_INK,
    "ytick.color": QUIET_INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4,
    "lines.solid_capstyle": "round",
    "axes.prop_cycle": cycler(color=LINE_COLORS) + cycler(linestyle=LINE_DASHES),
    "svg.hashsalt": "attnlib",
    "svg.fonttype": "path",
}


def use_style() -> None:
    """Make the book's style the default of every figure that is drawn from here on."""
    matplotlib.rcParams.update(STYLE)


def styled(draw: Callable) -> Callable:
    """Draw in the book's style and leave the reader's own settings as they were."""

    @functools.wraps(draw)
    def drawn_in_style(*arguments, **options):
        # Only these settings are put back: the first figure of a notebook switches others on.
        before = {name: matplotlib.rcParams[name] for name in STYLE}
        use_style()
        try:
            return draw(*arguments, **options)
        finally:
            matplotlib.rcParams.update(before)

    return drawn_in_style


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colors, from 1 to 21: (L1 + 0.05) / (L2 + 0.05) of WCAG 2."""

    def luminance(color: str) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)
        ]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    dark, light = sorted([luminance(first), luminance(second)])
    return (light + 0.05) / (dark + 0.05)


# The matrix that CSS names hue-rotate(180deg): it keeps the luma and turns the hue half around.
_LUMA = np.array([0.213, 0.715, 0.072])
_HUE_HALF_TURN = 2 * np.outer(np.ones(3), _LUMA) - np.eye(3)


def in_dark_theme(color: str) -> str:
    """The color that `invert(1) hue-rotate(180deg)` makes of an opaque color."""
    inverted = 1 - np.array(to_rgb(color))
    return to_hex(np.clip(_HUE_HALF_TURN @ inverted, 0, 1))


def text_color(color: str, ratio: float = 4.5, dark_ground: str = "#14181E") -> str:
    """The color, darkened as little as makes text in it readable in both themes."""
    for darkening in np.linspace(0, 1, 101):
        candidate = to_hex((1 - darkening) * np.array(to_rgb(color)))
        readable_in_light = contrast(candidate, "#FFFFFF") >= ratio
        readable_in_dark = contrast(in_dark_theme(candidate), dark_ground) >= ratio
        if readable_in_light and readable_in_dark:
            return candidate
    raise ValueError(f"color: no shade of {color} reaches a contrast of {ratio} in both themes")


def _ramp(*stops: str) -> LinearSegmentedColormap:
    """A map through the stops. 97 shades are finer than an eye tells apart, and store well."""
    return LinearSegmentedColormap.from_list("ramp", stops, N=97)


# White becomes transparent where a figure is stored, so zero is the ground of any page.
SEQUENTIAL = _ramp("#FFFFFF", "#CFE3F3", "#6FB1DC", "#0072B2", "#00304F")
DIVERGING = _ramp(
    "#5C2600",
    "#D55E00",
    "#F0A068",
    "#FBDDC6",
    "#FFFFFF",
    "#CFE3F3",
    "#6FB1DC",
    "#0072B2",
    "#00304F",
)
