"""Attention inside rectangular windows that tile a grid, shifted or not."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_scale
from attnlib.patterns.grid import for_each_axis, rectangles
from attnlib.read.disc_attention import near_square
from attnlib.read.grid_offsets import check_on_grid
from attnlib.weight.softmax import softmax

Pair = tuple[int, int]


def checked_shift(grid: Pair, height: int, width: int, shift: int | Pair) -> Pair:
    """The shift of each axis, once rectangles are sure to tile the grid."""
    rectangles(grid, height, width, shift)
    return for_each_axis("shift", shift, grid, least=0)


def dense_rectangle_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    grid: Pair,
    height: int,
    width: int,
    shift: int | Pair = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """`attend` with the support `rectangles`: what `rectangle_attention` must equal."""
    support = rectangles(grid, height, width, shift)
    check_on_grid(query, key, value, grid)
    return attend(query, key, value, support=support, scale=scale)


def trial_rectangles(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """A grid, rectangles and a shift for a trial call."""
    grid = near_square(query.shape[-2])
    height, width = 1 if grid[0] % 2 else 2, 4 if grid[1] % 4 == 0 else grid[1]
    return {"grid": grid, "height": height, "width": width, "shift": (height // 2, width // 2)}


@mechanism(
    key="rectangle-windows",
    paper="cat-rwin",
    chapter="8-vision/windows-and-neighbourhoods",
    section="rectangles",
    step="support",
    idea="a place reads the rectangular window in which it lies",
    equation=r"S_i = \{ j : \mathrm{window}(j) = \mathrm{window}(i) \}",
    cost="time N h w (D + E) for windows of h x w places",
    oracle=dense_rectangle_attention,
    promises=Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        grouped_query=False,
        padding=False,
        shortest=1,
        arguments=trial_rectangles,
    ),
    taxonomy=Taxonomy("self", "single", "local", "multi-head"),
)
def rectangle_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    grid: Pair,
    height: int,
    width: int,
    shift: int | Pair = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention of each place to the `height` x `width` window that holds it.

    .. math:: S_i = \{ j : \lfloor (y_j - s_y) / h \rfloor = \lfloor (y_i - s_y) / h \rfloor, \;
        \lfloor (x_j - s_x) / w \rfloor = \lfloor (x_i - s_x) / w \rfloor \}

    The grid is rolled by the shift, cut into equal windows, read window by window and rolled back.
    A window at a border then holds places from two ends of the grid, which a mask keeps apart.

    Shapes: query, key (..., heads, N, D), value (..., heads, N, E), N = rows * columns.
    Cost: time N h w (D + E), memory N h w; no N x N matrix.
    Raises ValueError for windows that do not tile the grid and shifts not below the window.
    Source: Chen et al. (2022), CAT, section 3.2. Derived in chapter 8.1.
    """
    shift, window = checked_shift(grid, height, width, shift), (height, width)
    check_on_grid(query, key, value, grid)
    check_scale(scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (cut(tensor.to(dtype), grid, window, shift) for tensor in (query, key, value))
    scores = (q * scale) @ k.mT
    weights = softmax(scores, same_side(grid, window, shift).to(scores.device).expand_as(scores))
    return joined(weights @ v, grid, window, shift).to(query.dtype)


def cut(
    x: Float[Tensor, "*heads N D"], grid: Pair, window: Pair, shift: Pair
) -> Float[Tensor, "*heads windows places D"]:
    """The grid, rolled back by the shift, as a list of windows."""
    image = x.unflatten(-2, grid).roll((-shift[0], -shift[1]), dims=(-3, -2))
    return rearrange(image, "... (y h) (x w) d -> ... (y x) (h w) d", h=window[0], w=window[1])


def joined(
    x: Float[Tensor, "*heads windows places D"], grid: Pair, window: Pair, shift: Pair
) -> Float[Tensor, "*heads N D"]:
    """The inverse of `cut`."""
    image = rearrange(
        x, "... (y x) (h w) d -> ... (y h) (x w) d", y=grid[0] // window[0], h=window[0]
    )
    return image.roll(shift, dims=(-3, -2)).flatten(-3, -2)


def same_side(grid: Pair, window: Pair, shift: Pair) -> Bool[Tensor, "windows places places"]:
    """Which pairs of a rolled window come from the same end of the grid."""
    rows, columns = torch.arange(grid[0]) < shift[0], torch.arange(grid[1]) < shift[1]
    end = (2 * rows[:, None] + columns[None, :]).double().flatten()[:, None]
    ends = cut(end, grid, window, shift)
    return ends == ends.mT
