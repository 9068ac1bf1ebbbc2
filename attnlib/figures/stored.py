"""Store a figure as a small PNG: few colors, a transparent ground, the same bytes every time."""

import base64
import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

PIXELS_PER_INCH = 140


def palette_png(figure: Figure, *, dpi: int = PIXELS_PER_INCH, colors: int = 128) -> bytes:
    """The figure as a PNG of at most `colors` colors, whose white is transparent."""
    if not 2 <= colors <= 256:
        raise ValueError(f"colors: got {colors}, expected 2 to 256")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    pixels = np.asarray(Image.open(drawn).convert("RGB"), dtype=np.uint32)
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    present, index, counts = np.unique(packed, return_inverse=True, return_counts=True)
    rgb = np.stack([present >> 16, present >> 8 & 255, present & 255], axis=1).astype(float)
    palette, nearest = _best_colors(rgb, counts, colors)
    picture = Image.fromarray(nearest[index].reshape(packed.shape).astype(np.uint8))
    rgba = np.rint(255 * on_any_ground(palette / 255)).astype(np.uint8)
    picture.putpalette(rgba[:, :3].tobytes())
    stored = io.BytesIO()
    picture.save(stored, format="png", optimize=True, transparency=rgba[:, 3].tobytes())
    return stored.getvalue()


def data_address(png: bytes) -> str:
    """The picture as an address that needs no file and no network."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def on_any_ground(colors: np.ndarray) -> np.ndarray:
    """Colors on white (rows of r, g, b in [0, 1]) as inks (r, g, b, alpha) that give them there.

    The smallest alpha with color = alpha ink + (1 - alpha) white is 1 - min(r, g, b). White itself
    becomes wholly transparent, and pale colors let the ground of any page through.
    """
    alpha = 1 - colors.min(axis=1, keepdims=True)
    ink = (colors - (1 - alpha)) / np.where(alpha == 0, 1, alpha)
    return np.clip(np.hstack([np.where(alpha == 0, 1, ink), alpha]), 0, 1)


def _best_colors(rgb: np.ndarray, counts: np.ndarray, colors: int) -> tuple[np.ndarray, np.ndarray]:
    """A palette out of the colors present, and for each of them the nearest in the palette.

    White first; then, one by one, the color whose pixels together are farthest from the palette.
    """
    chosen = [len(rgb) - 1]  # white is the largest color there is
    distance = ((rgb - rgb[-1]) ** 2).sum(axis=1)
    nearest = np.zeros(len(rgb), dtype=int)
    while len(chosen) < colors and distance.max() > 0:
        chosen.append(int(np.argmax(counts * distance)))
        to_newest = ((rgb - rgb[chosen[-1]]) ** 2).sum(axis=1)
        nearest[to_newest < distance] = len(chosen) - 1
        distance = np.minimum(distance, to_newest)
    return rgb[chosen], nearest
