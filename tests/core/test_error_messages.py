"""Wrong input to the parts: the message names the argument, what came and what was expected."""

import pytest
import torch

from attnlib import (
    KeyValueCache,
    attend,
    chunked_softmax_attention,
    score,
    softmax_attention_step,
    support,
)
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
    "cap": (lambda: score.soft_cap(0.0), "limit must be positive and finite, got 0.0"),
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
    "support no predicate": (lambda: attend(x, x, x, support="causal"), "support must be a pred"),
    "support of numbers": (
        lambda: attend(x, x, x, support=lambda b, h, i, j: i - j),
        "must give a bool tensor, got torch.int64",
    ),
    "support of another shape": (
        lambda: chunked_softmax_attention(x, x, x, support=lambda *at: torch.ones(5, 1, 1) > 0),
        "must give a shape that broadcasts to (2, 3, 3), got (5, 1, 1)",
    ),
    "support too small": (
        lambda: attend(x, x, x, support=support.document(torch.arange(2))),
        "support document(ids) must hold for all queries and keys",
    ),
    "ids": (lambda: support.document([0, 1]), "ids must be a torch.Tensor, got list"),
    "positions": (lambda: score.rotate(x, [0, 1, 2]), "positions must be a torch.Tensor, got list"),
    "base": (lambda: score.sinusoidal(3, 4, base=0.0), "base must be positive and finite"),
    "score_mod too small": (
        lambda: attend(x, x, x, score_mod=score.bias(torch.ones(2, 2))),
        "score_mod must hold for all heads, queries and keys",
    ),
    "score_mod of another shape": (
        lambda: attend(x, x, x, score_mod=lambda s, *at: s[None]),
        "score_mod must keep the shape (2, 3, 3), got (1, 2, 3, 3)",
    ),
    "scale type": (lambda: attend(x, x, x, scale="a"), "scale must be a number, got str"),
    "cache": (
        lambda: softmax_attention_step(KeyValueCache(x, x), x, x.double(), x.double()),
        "key must be torch.float32",
    ),
    "scale": (lambda: attend(x, x, x, scale=-1.0), "scale must be a positive finite number"),
    "offset": (lambda: attend(x, x, x, query_offset=True), "query_offset must be an int, got bool"),
    "mask": (
        lambda: attend(x, x, x, attn_mask=torch.zeros(3, 3)),
        "attn_mask must be a bool tensor (True = may attend), got torch.float32; "
        "pass a mask of 0 and -inf as attn_mask=(mask == 0), and an additive bias as score_mod",
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
