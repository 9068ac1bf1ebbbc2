"""What the kernels of scored attention are told, and which tile they take on which chip."""

import torch
from attnlib.kernels.launch import shared_memory_of
from attnlib.kernels.tile_choice import Tiles, tile
from torch import Tensor


def problem(query, key, value, bias, band, query_offset, softcap, scale) -> dict:
    """What all kernels are told of the layout, the support and the scores."""
    return {
        "query_steps": query.stride()[:3],
        "key_steps": key.stride()[:3],
        "value_steps": value.stride()[:3],
        "counts": (query.shape[2], key.shape[2], query.shape[1], key.shape[1]),
        "band": band,
        "query_offset": query_offset,
        "reach": 0 if bias is None else bias.shape[1] // 2,
        "softcap": softcap,
        "scale": scale,
        "width": query.shape[3],
        "value_width": value.shape[3],
    }


def tile_for(kernel: str, query: Tensor, value: Tensor, bias: Tensor | None) -> dict:
    """The tile of one of the kernels for these tensors on the device that holds them."""
    memory = shared_memory_of(query.device)
    widths = query.shape[-1], value.shape[-1]
    return tile_within(kernel, *widths, query.dtype, memory, bias is not None)


def tile_within(
    kernel: str,
    width: int,
    value_width: int,
    dtype: torch.dtype,
    shared_memory: int | None,
    has_bias: bool,
) -> dict:
    """What `tile_choice.tile` says; a relative bias, loaded for each score, takes room of its own.

    The gradient of the bias picks S diagonals out of S queries and 2 S keys.
    """
    table = TILES_WITH_BIASES if has_bias else TILES
    choices = tile(table, kernel, width, value_width, dtype, shared_memory)
    if kernel == "bias gradient":
        choices["key_block_size"] = 2 * choices["query_block_size"]
    return choices


# As `tile_choice` reads them. Those for 2 bytes a number are the largest tried that spill no
# registers when compiled for Hopper (232,448) and Ampere (101,376) with sink, cap and slopes.
TILES: Tiles = {
    ("forward", 2): [
        (232_448, 128, 128, 128, 8, 3),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 3),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 64, 32, 8, 2),
    ],
    ("query gradient", 2): [
        (232_448, 64, 128, 64, 8, 3),
        (232_448, 128, 128, 64, 8, 2),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 3),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 32, 32, 4, 2),
    ],
    ("key gradient", 2): [
        (232_448, 64, 32, 128, 8, 3),
        (232_448, 128, 32, 128, 8, 2),
        (101_376, 64, 32, 128, 8, 2),
        (101_376, 128, 32, 64, 8, 2),
        (101_376, 256, 32, 32, 8, 2),
    ],
    ("forward", 4): [(101_376, 64, 64, 32, 8, 2), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 4): [(101_376, 64, 64, 32, 8, 2), (101_376, 256, 16, 16, 8, 1)],
    ("key gradient", 4): [(101_376, 64, 32, 32, 8, 1), (101_376, 256, 16, 16, 8, 1)],
    ("forward", 8): [(101_376, 64, 32, 32, 4, 1), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 8): [(101_376, 64, 32, 32, 4, 1), (166_912, 256, 16, 16, 8, 1)],
    ("key gradient", 8): [(101_376, 64, 32, 32, 8, 1), (166_912, 256, 16, 16, 8, 1)],
}

# The same with a relative bias.
TILES_WITH_BIASES: Tiles = TILES | {
    ("forward", 2): [
        (232_448, 128, 128, 64, 8, 3),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 2),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 64, 32, 8, 2),
    ],
    ("query gradient", 2): [
        (232_448, 64, 128, 64, 8, 2),
        (232_448, 128, 64, 32, 8, 3),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 32, 8, 3),
        (101_376, 128, 64, 32, 8, 2),
        (101_376, 256, 32, 32, 4, 2),
    ],
    ("key gradient", 2): [
        (232_448, 64, 64, 64, 8, 3),
        (232_448, 128, 32, 128, 8, 2),
        (101_376, 64, 32, 64, 8, 2),
        (101_376, 128, 32, 64, 8, 2),
        (101_376, 256, 32, 32, 8, 2),
    ],
    ("bias gradient", 2): [
        (232_448, 64, 64, 128, 8, 1),
        (101_376, 256, 32, 64, 8, 1),
    ],
    ("bias gradient", 4): [(101_376, 64, 32, 64, 8, 1), (101_376, 256, 16, 32, 8, 1)],
    ("bias gradient", 8): [(101_376, 64, 16, 32, 8, 1), (166_912, 256, 16, 32, 8, 1)],
}
