"""A figure over one to three parameters: a slider in the page, a live widget in a kernel."""

import html
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from attnlib.figures.show import check_labels, check_texts, display_html, image_html, plain_text
from attnlib.figures.stored import data_address, palette_png

MOST_FRAMES = 24
MOST_BYTES = 150_000
FRAME_PIXELS_PER_INCH = 110
FRAME_COLORS = 48

# The handler of every slider: find the frame of all sliders together, show it, say it.
_MOVE = (
    "const f=this.closest('figure'),d=f.dataset,n=JSON.parse(d.alts),"
    "i=[...f.querySelectorAll('input')].reduce((i,s)=>i*(+s.max+1)+ +s.value,0),"
    "p=f.querySelector('img'),w=JSON.parse(this.dataset.values)[this.value];"
    "p.src='data:image/png;base64,'+JSON.parse(d.frames)[i];p.alt=n[i];"
    "this.setAttribute('aria-valuetext',w);this.nextElementSibling.textContent=w"
)

Frame = tuple[bytes, str]  # a picture and its alternative text


def frames(
    fn: Callable[..., Figure | tuple[Figure, str]],
    *,
    caption: str,
    alt: str | Callable[..., str],
    **grid: Sequence,
) -> None:
    """Show fn(**parameters) for each point of the grid, with one slider for each parameter.

    `fn` returns a figure, or a figure and a text. `alt` is a format string over the parameters
    (and `{text}`), such as "weights of a window of {width}", or a function of the same names; it
    must tell the frames apart. In a static page the pictures are drawn beforehand, so keep the grid
    and the figure small: at most 24 frames and 150 KB. In a live kernel, unless ATTN_STATIC is
    set, the same output also holds a widget that calls `fn` anew at each move.

    Raises ValueError for a grid that is empty or too large, for texts that are missing, and for
    alternative texts that do not change.
    """
    names = _checked_grid(grid)
    if isinstance(alt, str):
        check_texts(caption, alt)
    drawn = [_draw(fn, alt, point, caption) for point in _points(grid)]
    alts = [words for _, words in drawn]
    if len(set(alts)) < len(alts):
        raise ValueError(
            f"alt: {len(set(alts))} different texts for {len(alts)} frames; "
            f"name the parameters in it, such as {{{names[0]}}}"
        )
    markup = frames_html(drawn, grid, caption)
    live = {} if os.environ.get("ATTN_STATIC") else _live_view(fn, alt, grid, drawn[0], caption)
    display_html(markup, plain_text(caption, alts[0]), **live)


def frames_html(drawn: Sequence[Frame], grid: Mapping[str, Sequence], caption: str) -> str:
    """The slider as one HTML element: an image, its other frames in a data attribute."""
    pictures = [data_address(png).split(",")[1] for png, _ in drawn]
    alts = json.dumps([words for _, words in drawn], ensure_ascii=False)
    sliders = "".join(_slider(name, values) for name, values in grid.items())
    markup = (
        '<figure class="attn-frames attn-figure" '
        f"data-frames='{json.dumps(pictures)}' data-alts=\"{html.escape(alts)}\">"
        f"{image_html(*drawn[0], dpi=FRAME_PIXELS_PER_INCH)}"
        f'<div class="attn-sliders" style="margin:.5em 0">{sliders}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
    if len(markup) > MOST_BYTES:
        raise ValueError(
            f"grid: {len(drawn)} frames take {len(markup) // 1000} KB, expected at most "
            f"{MOST_BYTES // 1000} KB; draw fewer frames or a smaller figure"
        )
    return markup


def _checked_grid(grid: Mapping[str, Sequence]) -> list[str]:
    if not 1 <= len(grid) <= 3:
        raise ValueError(f"grid: got {len(grid)} parameters, expected one to three")
    count = 1
    for name, values in grid.items():
        if len(values) < 2:
            raise ValueError(
                f"{name}: got {len(values)} values, expected at least two to move over"
            )
        count *= len(values)
    if count > MOST_FRAMES:
        raise ValueError(f"grid: it has {count} frames, expected at most {MOST_FRAMES}")
    return list(grid)


def _points(grid: Mapping[str, Sequence]) -> list[dict]:
    return [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]


def _draw(fn: Callable, alt: str | Callable[..., str], point: dict, caption: str) -> Frame:
    """Draw one frame and close its figure."""
    drawn = fn(**point)
    figure, said = drawn if isinstance(drawn, tuple) else (drawn, None)
    if not isinstance(figure, Figure):
        raise TypeError(f"fn: it returned {type(figure).__name__}, expected a matplotlib Figure")
    words = point if said is None else {**point, "text": said}
    alternative = alt(**words) if callable(alt) else alt.format(**words)
    check_texts(caption, alternative)
    check_labels(figure)
    png = palette_png(figure, dpi=FRAME_PIXELS_PER_INCH, colors=FRAME_COLORS)
    plt.close(figure)
    return png, alternative


def _said(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slider(name: str, values: Sequence) -> str:
    label, said = html.escape(name.replace("_", " ")), [_said(value) for value in values]
    listed = html.escape(json.dumps(said, ensure_ascii=False))
    return (
        f'<label style="display:flex;gap:.7em;align-items:center;max-width:30em">'
        f'<span style="min-width:6.5em">{label}</span>'
        f'<input type="range" min="0" max="{len(values) - 1}" step="1" '
        f'value="0" autocomplete="off" aria-label="{label}" '
        f'aria-valuetext="{html.escape(said[0])}" '
        f'data-values="{listed}" oninput="{html.escape(_MOVE)}" style="flex:1;min-width:6em">'
        f'<output style="min-width:3em">{html.escape(said[0])}</output></label>'
    )


def _live_view(fn: Callable, alt, grid: Mapping[str, Sequence], first: Frame, caption: str) -> dict:
    """The same figure as a widget of the running kernel, where there is one."""
    from IPython import get_ipython

    if getattr(get_ipython(), "kernel", None) is None:
        return {}
    try:
        import ipywidgets
    except ImportError:
        return {}

    def picture(frame: Frame) -> str:
        image = image_html(*frame, dpi=FRAME_PIXELS_PER_INCH)
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"

    shown = ipywidgets.HTML(picture(first))
    sliders = {
        name: ipywidgets.SelectionSlider(
            options=[(_said(value), value) for value in values], description=name.replace("_", " ")
        )
        for name, values in grid.items()
    }

    def redraw(_change) -> None:
        point = {name: slider.value for name, slider in sliders.items()}
        shown.value = picture(_draw(fn, alt, point, caption))

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    view = ipywidgets.VBox([shown, *sliders.values()])
    kind = "application/vnd.jupyter.widget-view+json"
    return {kind: view._repr_mimebundle_()[kind]}
