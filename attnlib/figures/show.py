"""Show a figure: one picture, one caption, one alternative text, in one HTML output."""

import html
import io
import re

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from attnlib.figures.stored import PIXELS_PER_INCH, data_address, palette_png

CSS_PIXELS_PER_INCH = 100  # on the page: 6.5 inches become 650 pixels of the text column

# A notebook shows the figure on white. The book's style sheet takes the white away again.
IMAGE_STYLE = (
    "max-width:100%;height:auto;box-sizing:border-box;"
    "background-color:#fff;padding:6px;border-radius:3px"
)


def check_texts(caption: str, alt: str) -> None:
    """Refuse a figure without words: a caption to read and an alternative text to hear."""
    for name, text in (("caption", caption), ("alt", alt)):
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected a string, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"{name}: it is empty, expected a sentence about the figure")
    if "$" in caption or r"\(" in caption:
        raise ValueError("caption: it holds TeX, expected plain text (Unicode or HTML is fine)")


def check_labels(figure: Figure) -> None:
    """Refuse axes without labels. Panels that share an axis, and heat maps, may share a label."""
    for direction, of_figure in (("x", figure.get_supxlabel()), ("y", figure.get_supylabel())):
        for number, axes in enumerate(figure.axes):
            if axes.axison and not of_figure and not _labels(axes, direction, figure):
                raise ValueError(
                    f"fig: axes {number} have no {direction} label; "
                    f'expected axes.set_{direction}label("quantity (unit)")'
                )


def _labels(axes: Axes, direction: str, figure: Figure) -> bool:
    """Whether these axes, or axes that they may share a label with, have a label."""
    if hasattr(axes, "_colorbar"):  # a color bar says its quantity on one side only
        return bool(axes.get_xlabel() or axes.get_ylabel())
    shared = axes.get_shared_x_axes() if direction == "x" else axes.get_shared_y_axes()
    family = list(shared.get_siblings(axes))
    if axes.images:
        family += [other for other in figure.axes if other.images]
    return any(getattr(member, f"get_{direction}label")() for member in family)


def image_html(png: bytes, alt: str, *, dpi: int = PIXELS_PER_INCH) -> str:
    """An image element in the size of the page, which shrinks on a narrow screen."""
    pixels = Image.open(io.BytesIO(png)).size
    width, height = (round(side / dpi * CSS_PIXELS_PER_INCH) for side in pixels)
    return (
        f'<img src="{data_address(png)}" alt="{html.escape(alt)}" '
        f'width="{width}" height="{height}" style="{IMAGE_STYLE}">'
    )


def figure_html(figure: Figure, *, caption: str, alt: str) -> str:
    """The figure as the one HTML element that book and notebook show."""
    check_texts(caption, alt)
    check_labels(figure)
    image = image_html(palette_png(figure), alt)
    return f'<figure class="attn-figure">{image}<figcaption>{caption}</figcaption></figure>'


def plain_text(caption: str, alt: str) -> str:
    """What a terminal shows in place of the figure."""
    words = html.unescape(re.sub(r"<[^>]+>", "", caption)).strip()
    return f"[figure] {words}\n{alt.strip()}"


def display_html(markup: str, plain: str, **more) -> None:
    """Display one output of several forms; a page takes the HTML, a terminal the plain text."""
    from IPython.display import display

    display({"text/html": markup, "text/plain": plain, **more}, raw=True)


def show(fig: Figure, *, caption: str, alt: str) -> None:
    """Show a figure with its caption, whose first words are the finding, and close it.

    `alt` says in words what the picture shows, for a reader who does not see it. The output is
    one `<figure class="attn-figure">` with a small PNG inside. A figure that was shown here is
    closed, so that the notebook does not show it a second time.

    Raises ValueError for an empty caption or alt, TeX in the caption, or axes without labels.
    """
    markup = figure_html(fig, caption=caption, alt=alt)
    plt.close(fig)
    display_html(markup, plain_text(caption, alt))
