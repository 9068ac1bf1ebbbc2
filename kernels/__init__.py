"""Triton kernels of the book, one readable file each; they import torch and triton only.

Start with `masked_softmax.py`. How a kernel is proved is in `gates.py`; how it is timed on a GPU
is in `gpu.py`. The package can be imported without Triton: `available()` is False there, and a
kernel that is called raises an ImportError.
"""

from attnlib.kernels.block_lists import BlockLists, block_lists
from attnlib.kernels.launch import available, missing_kernel, suits
from attnlib.kernels.tiled_support import TiledSupport, tiled_support

if available():
    from attnlib.kernels.block_sparse_attention import block_sparse_attention
    from attnlib.kernels.block_sparse_filter import filtered_block_sparse_attention
    from attnlib.kernels.delta_rule import delta_rule
    from attnlib.kernels.delta_rule_step import delta_rule_step
    from attnlib.kernels.flash_attention import flash_attention
    from attnlib.kernels.linear_attention import linear_attention
    from attnlib.kernels.linear_attention_step import linear_attention_step
    from attnlib.kernels.masked_block_attention import masked_block_attention
    from attnlib.kernels.masked_softmax import masked_softmax
    from attnlib.kernels.neighborhood_attention import neighborhood_attention
    from attnlib.kernels.packed_attention import packed_attention
    from attnlib.kernels.scored_attention import scored_attention
    from attnlib.kernels.sigmoid_attention import sigmoid_attention
    from attnlib.kernels.split_decode import split_decode
else:
    block_sparse_attention = missing_kernel("block_sparse_attention")
    filtered_block_sparse_attention = missing_kernel("filtered_block_sparse_attention")
    delta_rule = missing_kernel("delta_rule")
    delta_rule_step = missing_kernel("delta_rule_step")
    flash_attention = missing_kernel("flash_attention")
    linear_attention = missing_kernel("linear_attention")
    linear_attention_step = missing_kernel("linear_attention_step")
    masked_block_attention = missing_kernel("masked_block_attention")
    masked_softmax = missing_kernel("masked_softmax")
    neighborhood_attention = missing_kernel("neighborhood_attention")
    packed_attention = missing_kernel("packed_attention")
    scored_attention = missing_kernel("scored_attention")
    sigmoid_attention = missing_kernel("sigmoid_attention")
    split_decode = missing_kernel("split_decode")

__all__ = [
    "BlockLists",
    "TiledSupport",
    "available",
    "block_lists",
    "block_sparse_attention",
    "delta_rule",
    "delta_rule_step",
    "filtered_block_sparse_attention",
    "flash_attention",
    "linear_attention",
    "linear_attention_step",
    "masked_block_attention",
    "masked_softmax",
    "neighborhood_attention",
    "packed_attention",
    "scored_attention",
    "sigmoid_attention",
    "split_decode",
    "suits",
    "tiled_support",
]
