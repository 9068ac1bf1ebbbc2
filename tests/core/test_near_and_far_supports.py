"""Spans for heads, all or here, global tokens for a task: the fast reads are the dense ones."""

import pytest
import torch

from attnlib import (
    SpanRule,
    all_or_here_attention,
    attend,
    head_spans_attention,
    task_global_attention,
)
from attnlib.read.all_or_here import (
    all_or_here_pairs,
    all_or_here_support,
    dense_all_or_here,
)
from attnlib.read.head_spans import dense_head_spans, span_pairs, span_support
from attnlib.read.task_global import dense_task_global, task_global_pairs, task_global_support
from attnlib.support import dense


def inputs(length, *, heads=3, batch=2, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, batch, heads, length, width, generator=generator).double().unbind(0)


def spans_of(length):
    return {"spans": [2, max(1, length // 2), 2], "sinks": 2}


def decisions_of(length):
    generator = torch.Generator().manual_seed(length)
    return {"everywhere": torch.rand(2, length, 3, generator=generator) < 0.2, "window": 5}


def chosen_of(length):
    generator = torch.Generator().manual_seed(length)
    return {"chosen": torch.rand(2, length, generator=generator) < 0.1, "window": 5}


FORMS = {
    "spans": (head_spans_attention, dense_head_spans, spans_of),
    "all or here": (all_or_here_attention, dense_all_or_here, decisions_of),
    "global for a task": (task_global_attention, dense_task_global, chosen_of),
}


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_reads_and_gradients_equal_the_dense_ones(form, is_causal, length):
    fast, slow, arguments = FORMS[form]
    *tensors, upstream = inputs(length)
    results = []
    for function, more in ((fast, {"chunk": 16}), (slow, {})):
        leaves = [x.clone().requires_grad_() for x in tensors]
        read = function(*leaves, **arguments(length), is_causal=is_causal, **more)
        slopes = torch.autograd.grad((read * upstream).sum(), leaves, materialize_grads=True)
        results.append((read, *slopes))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_an_offset_a_mask_and_other_numbers_of_keys_change_nothing_of_that(form):
    fast, slow, arguments = FORMS[form]
    query, key, value, _ = inputs(40)
    given = arguments(40)
    query, offset = query[:, :, 28:], 28
    if form == "all or here":
        given["everywhere"] = given["everywhere"][:, 28:]
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(2, 1, 12, 40, generator=generator) < 0.7
    mask[:, :, 3] = False
    options = {"is_causal": True, "query_offset": offset, "attn_mask": mask, "scale": 0.3}
    ours = fast(query, key, value, **given, **options, chunk=5)
    torch.testing.assert_close(
        ours, slow(query, key, value, **given, **options), rtol=0, atol=1e-12
    )
    assert not ours[:, :, 3].any()


@pytest.mark.parametrize("heads", [2, 4])
def test_a_backend_in_the_interpreter_reads_the_same_spans(heads):
    query, key, value, _ = (x.float() for x in inputs(37, heads=heads, width=16))
    given = {"spans": [3, 20, 3, 9][:heads], "sinks": 1, "is_causal": True}
    torch.testing.assert_close(
        head_spans_attention(query, key, value, **given, backend="triton"),
        head_spans_attention(query, key, value, **given, backend="torch"),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_supports_say_what_the_reads_see():
    query, key, value, _ = inputs(20)
    for support, (fast, given) in {
        span_support([2, 10, 2], 2): (head_spans_attention, spans_of(20)),
        all_or_here_support(decisions_of(20)["everywhere"], 5): (
            all_or_here_attention,
            decisions_of(20),
        ),
        task_global_support(chosen_of(20)["chosen"], 5): (task_global_attention, chosen_of(20)),
    }.items():
        wanted = attend(query, key, value, support=support, is_causal=True)
        got = fast(query, key, value, **given, is_causal=True)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_by_hand_four_words_two_heads():
    table = dense(span_support([1, 3], sinks=1), 4, 4, heads=2)[0].tril()
    assert table[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert table[1].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert span_pairs([1, 3], 4, sinks=1) == int(table.sum()) == 7 + 10
    chosen = torch.tensor([[False, True, False, False]])
    seen = dense(task_global_support(chosen, 1), 4, 4)[0, 0]
    assert seen.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 1]]
    assert task_global_pairs(4, 1, 1) == 4 + 8
    everywhere = torch.tensor([[[False], [False], [True], [False]]])
    assert all_or_here_pairs(everywhere, 2) == 1 + 2 + 3 + 2


def test_spans_count_as_the_table_does():
    for length in (1, 7, 30):
        table = dense(span_support([1, 4, 50], sinks=3), length, length, heads=3)[0].tril()
        assert span_pairs([1, 4, 50], length, sinks=3) == int(table.sum())


def test_a_rule_grows_with_the_text_and_is_an_operator():
    rule = SpanRule((4.0, 0.0, 2.0), (0.0, 0.5, 0.25), sinks=1)
    assert rule.spans(16) == [4, 8, 6] and rule.spans(64) == [4, 32, 18]
    assert rule.spans(2) == [2, 1, 2]
    query, key, value, _ = inputs(16)
    wanted = dense_head_spans(query, key, value, [4, 8, 6], sinks=1, is_causal=True)
    torch.testing.assert_close(rule(query, key, value, is_causal=True), wanted)


def test_nobody_chosen_is_a_window_and_everybody_is_full_attention():
    query, key, value, _ = inputs(30)
    everybody = torch.ones(2, 30, 3, dtype=torch.bool)
    for function, chosen in (
        (all_or_here_attention, everybody),
        (task_global_attention, everybody[..., 0]),
    ):
        full = function(query, key, value, chosen, window=3, is_causal=True)
        torch.testing.assert_close(full, attend(query, key, value, is_causal=True))
        near = function(query, key, value, ~chosen, window=3, is_causal=True)
        spans = head_spans_attention(query, key, value, [3] * 3, is_causal=True)
        torch.testing.assert_close(near, spans)
    whole = head_spans_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(whole, attend(query, key, value, is_causal=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *x: head_spans_attention(*x, [2, 2]), "spans must have one int for each of the 3"),
        (lambda *x: head_spans_attention(*x, [2, 0, 2]), "spans must be at least 1, got 0"),
        (lambda *x: head_spans_attention(*x, 4), "spans must be a list"),
        (lambda *x: head_spans_attention(*x, [2.5] * 3), "spans must be an int"),
        (lambda *x: head_spans_attention(*x, [2] * 3, sinks=-1), "sinks must be at least 0"),
        (lambda *x: all_or_here_attention(*x, window=0), "window must be at least 1"),
        (lambda *x: all_or_here_attention(*x, torch.ones(2, 8, 3)), "everywhere must be a bool"),
        (
            lambda *x: all_or_here_attention(*x, torch.ones(2, 3, 8, dtype=torch.bool)),
            r"everywhere must have shape \(..., N, heads\) = \(2, 8, 3\), got \(2, 3, 8\)",
        ),
        (lambda *x: task_global_attention(*x, window=0), "window must be at least 1"),
        (lambda *x: task_global_attention(*x, torch.ones(2, 8)), "chosen must be a bool"),
        (
            lambda *x: task_global_attention(*x, torch.ones(2, 7, dtype=torch.bool)),
            "chosen must have at least 8 places, got 7",
        ),
        (
            lambda *x: task_global_attention(*x, torch.ones(3, 8, dtype=torch.bool)),
            r"chosen must have shape \(\*batch, places\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(*inputs(8)[:3])


@pytest.mark.parametrize(
    ("alpha", "beta", "message"),
    [((1.0,), (0.0, 0.5), "one number for each head"), ((-1.0,), (0.0,), "must not be negative")],
)
def test_a_bad_rule_is_refused(alpha, beta, message):
    with pytest.raises(ValueError, match=message):
        SpanRule(alpha, beta)
