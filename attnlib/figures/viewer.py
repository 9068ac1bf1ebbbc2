"""The attention viewer: layers by heads by tokens, in one piece of HTML that needs no network."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from attnlib.figures.heatmaps import heatmap
from attnlib.figures.show import check_texts, display_html, image_html, plain_text
from attnlib.figures.stored import palette_png

MOST_BYTES = 200_000
STILL_PIXELS_PER_INCH = 100


def attention_viewer(
    weights,
    tokens: Sequence[str],
    *,
    caption: str,
    alt: str,
    keys: Sequence[str] | None = None,
    start: tuple[int, int, int] | None = None,
) -> None:
    """Show weights (layers, heads, N, M), or (heads, N, M), that a reader can walk through.

    `tokens` are the N queries; they are the keys too unless `keys` gives the M others. A click
    or the arrow keys choose a head; pointing at a token, or the arrow keys, choose the query, and
    every key is shaded by the weight that this query gives it. A table says the same in numbers.
    Each weight is kept in one byte, to within 0.002 of the root of its share in the largest.
    It opens at `start` = (layer, head, query), counted from zero; unless given, at the first head
    and the middle query. Where scripts are not allowed a picture of that head stands instead.

    Raises ValueError for a wrong shape, weights that are negative or infinite, empty texts, or
    more than 200 KB.
    """
    markup = viewer_html(weights, tokens, caption=caption, alt=alt, keys=keys, start=start)
    display_html(markup, plain_text(caption, alt))


def viewer_html(
    weights,
    tokens: Sequence[str],
    *,
    caption: str,
    alt: str,
    keys: Sequence[str] | None = None,
    start: tuple[int, int, int] | None = None,
) -> str:
    """The viewer as one HTML element; see `attention_viewer`."""
    check_texts(caption, alt)
    array = _four_dimensional(weights)
    layers, heads, queries, length = array.shape
    for name, given, expected in (("tokens", tokens, queries), ("keys", keys or tokens, length)):
        if len(given) != expected:
            raise ValueError(f"{name}: got {len(given)} tokens, expected {expected}")
    layer, head, query = start or (0, 0, queries // 2)
    if not (0 <= layer < layers and 0 <= head < heads and 0 <= query < queries):
        raise ValueError(
            f"start: got {start}, expected (layer, head, query) below {(layers, heads, queries)}"
        )
    largest = float(array.max()) or 1.0
    shape = {
        "layers": layers, "heads": heads, "queries": queries, "keys": length, "largest": largest,
        "head": layer * heads + head, "query": query,
    }  # fmt: skip
    encoded = base64.b64encode(_bytes_of_roots(array, largest)).decode("ascii")
    still = heatmap(array[layer, head], rows=tokens, columns=keys or tokens, limits=(0, largest))
    picture = image_html(
        palette_png(still, dpi=STILL_PIXELS_PER_INCH, colors=64), alt, dpi=STILL_PIXELS_PER_INCH
    )
    plt.close(still)
    here = Path(__file__)
    css, script = (here.with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
    markup = (
        f'<figure class="attn-viewer mathjax_ignore tex2jax_ignore" '
        f"data-shape='{json.dumps(shape)}' data-weights=\"{encoded}\"><style>{css}</style>"
        f'<div class="attn-still">{picture}</div><div class="attn-live">'
        f"{_head_buttons(layers, heads)}"
        f'<div class="attn-parts">{_map(largest)}{_words(tokens, keys)}</div></div>'
        f"<figcaption>{caption}</figcaption></figure><script>{script}</script>"
    )
    if len(markup) > MOST_BYTES:
        raise ValueError(
            f"weights: the viewer takes {len(markup) // 1000} KB, expected at most "
            f"{MOST_BYTES // 1000} KB; show fewer heads or a shorter text"
        )
    return markup


def _four_dimensional(weights) -> np.ndarray:
    if hasattr(weights, "detach"):
        weights = weights.detach().cpu().double().numpy()
    array = np.asarray(weights, dtype=np.float64)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or 0 in array.shape:
        raise ValueError(
            f"weights: got shape {np.shape(weights)}, expected (layers, heads, queries, keys)"
        )
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError("weights: expected finite numbers that are not negative")
    return array


def _bytes_of_roots(array: np.ndarray, largest: float) -> bytes:
    """255 sqrt(w / largest), rounded: one byte a weight, finest where weights are small."""
    return np.rint(255 * np.sqrt(array / largest)).astype(np.uint8).tobytes()


def _head_buttons(layers: int, heads: int) -> str:
    buttons = []
    for layer in range(1, layers + 1):
        buttons.append(f"<span>layer {layer}</span>")
        buttons += [
            f'<button type="button" aria-label="layer {layer}, head {head}" '
            f'title="layer {layer}, head {head}"><canvas></canvas></button>'
            for head in range(1, heads + 1)
        ]
    columns = f"grid-template-columns:max-content repeat({heads},minmax(0,44px))"
    return (
        f'<div class="attn-heads" role="group" aria-label="heads" style="{columns}">'
        f"{''.join(buttons)}</div>"
    )


def _map(largest: float) -> str:
    marks = "".join(
        f"<span>{largest * share:.2g}</span>" for share in (0, 1 / 16, 1 / 4, 9 / 16, 1)
    )
    return (
        '<div class="attn-map"><div>rows: queries, columns: keys</div>'
        '<div class="attn-frame"><canvas aria-hidden="true"></canvas>'
        '<div class="attn-row"></div></div><div class="attn-bar"></div>'
        f'<div class="attn-scale">{marks}</div><div>shade: square root of the weight</div></div>'
    )


def _words(tokens: Sequence[str], keys: Sequence[str] | None) -> str:
    """The tokens to point at, the sentence that is read aloud, and the table."""
    buttons = "".join(f'<button type="button">{_visible(token)}</button>' for token in tokens)
    if keys is None:
        strips = (
            '<div class="attn-name">choose a query; shades are its weights</div>'
            f'<div class="attn-tokens attn-queries attn-keys" role="group" '
            f'aria-label="queries">{buttons}</div>'
        )
    else:
        others = "".join(f"<span>{_visible(key)}</span>" for key in keys)
        strips = (
            '<div class="attn-name">choose a query</div><div class="attn-tokens attn-queries" '
            f'role="group" aria-label="queries">{buttons}</div>'
            '<div class="attn-name">keys, shaded by its weights</div>'
            f'<div class="attn-tokens attn-keys">{others}</div>'
        )
    rows = "".join(
        f'<tr><th scope="row">{position} {_visible(key)}</th><td></td></tr>'
        for position, key in enumerate(keys or tokens)
    )
    return (
        f'<div class="attn-words">{strips}<p class="attn-said" aria-live="polite"></p>'
        "<details><summary>the weights of this query as a table</summary>"
        '<div class="attn-scroll" tabindex="0" role="group" aria-label="weights of this query">'
        '<table><thead><tr><th scope="col">key</th><th scope="col">weight</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details></div>"
    )


def _visible(token: str) -> str:
    """A token as text that can be seen: spaces and line ends get a sign."""
    return html.escape(token.replace("\n", "↵").replace(" ", "␣")) or "∅"
