"""Wrong input to the parts: the message names the argument, what came and what was expected."""

import pytest
import torch

from attnlib import attend, chunked_softmax_attention, score, support
from attnlib.read import split_heads

x = torch.ones(2, 3, 4)

CASES = {
    "window": (lambda: support.window(-1), "width must be at least 1, got -1"),
    "window type": (lambda: support.window(2.5), "width must be an int, got float"),
    "sink": (lambda: support.sink(-2), "count must be at least 0, got -2"),
    "prefix": (lambda: support.prefix(-1), "length must be at least 0"),
    "dilated": (lambda: support.dilated(0), "step must be at least 1"),
    "shifted": (lambda: support.shifted(support.causal, -1), "query_offset must be at least 0"),
    "document": (lambda: support.document(torch.ones(1, 1, 1)), "ids must have shape"),
    "padding": (lambda: support.padding(torch.ones(1, 1)), "lengths must have shape"),
    "from_mask": (lambda: support.from_mask(torch.ones(2, 2)), "mask must be a bool table"),
    "bias": (lambda: score.bias(torch.ones(2)), "table must have shape"),
    "relative": (lambda: score.relative_bias(torch.ones(2, 4)), "odd second size"),
    "alibi": (lambda: score.alibi(0), "heads must be at least 1"),
    "cap": (lambda: score.soft_cap(0.0), "limit must be positive, got 0.0"),
    "additive": (
        lambda: score.additive(torch.ones(2, 4), torch.ones(3, 4), torch.ones(2)),
        "query_matrix, key_matrix and vector must have shapes",
    ),
    "general": (lambda: score.general(torch.ones(3, 3))(x, x), "matrix must have shape"),
    "rotate width": (
        lambda: score.rotate(torch.ones(2, 3), torch.arange(2)),
        "x must have an even",
    ),
    "rotate": (lambda: score.rotate(x, torch.arange(2)), "positions must have shape"),
    "heads": (lambda: split_heads(x, 3), "heads must divide the width 4"),
    "bool query": (lambda: attend(x > 0, x, x), "query must be a floating-point tensor"),
    "scale": (lambda: attend(x, x, x, scale=-1.0), "scale must be a positive finite number"),
    "offset": (lambda: attend(x, x, x, query_offset=True), "query_offset must be an int, got bool"),
    "mask": (
        lambda: attend(x, x, x, attn_mask=torch.zeros(3, 3)),
        "attn_mask must be a bool tensor (True = may attend), got torch.float32; "
        "pass an additive bias as score_mod",
    ),
    "batch mask": (
        lambda: attend(x, x, x, attn_mask=torch.ones(5, 2, 3, 3, dtype=torch.bool)),
        "attn_mask must broadcast",
    ),
    "gqa": (lambda: attend(x, x[:1], x[:1]), "enable_gqa=True"),
    "chunk": (lambda: chunked_softmax_attention(x, x, x, chunk=0), "chunk must be at least 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_refused_by_name(name):
    call, words = CASES[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert words in str(caught.value)
