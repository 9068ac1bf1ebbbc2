"""What stands beside a kernel's time: bounds, peers, and the proof that a peer does the same."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from attnlib.kernels import benchmark, peers
from attnlib.kernels.benchmark import Limits
from attnlib.kernels.proof import Case, Proof
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

CPU = torch.device("cpu")
# 1000 bytes and 100 operations a millisecond.
LIMITS = Limits(1e6, {"float32": 1e5})


class Stopwatch:
    """Runs what it times once and shows the next of its times, the last one again and again."""

    def __init__(self, *times):
        self.times = list(times)

    def __call__(self, run):
        run()
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


def doubled(x):
    return 2 * x


def two_cases(dtype, device):
    yield Case("4 numbers", (torch.randn(4, dtype=dtype, requires_grad=True),))
    yield Case("3 by 2", (torch.randn(3, 2, dtype=dtype),))


DOUBLING = Proof(
    name="doubled",
    kernel=doubled,
    reference=lambda x: x + x,
    cases=two_cases,
    launches=(),
    timed_cases=two_cases,
    bytes_moved=lambda x: {"forward": 8 * x.numel(), "backward": 8 * x.numel()},
    timed_dtypes=(torch.float32,),
)


def rows_of(proof=DOUBLING, stopwatch=None, limits=LIMITS):
    return benchmark.time_kernel(proof, CPU, limits, stopwatch or Stopwatch(1.0))


def test_copy_bandwidth_counts_a_read_and_a_write():
    assert benchmark.copy_bandwidth(CPU, Stopwatch(1.0), size=500) == pytest.approx(1e6)


def test_matrix_rate_counts_two_operations_for_each_product():
    rate = benchmark.matrix_rate(CPU, torch.float32, Stopwatch(1.0), side=10)
    assert rate == pytest.approx(2 * 10**3 / 1e-3)


def test_every_rate_is_measured_in_its_precision_and_the_setting_is_put_back(monkeypatch):
    seen = []

    def remember(device, dtype, milliseconds, side):
        seen.append((dtype, torch.get_float32_matmul_precision()))
        return float(len(seen))

    monkeypatch.setattr(benchmark, "matrix_rate", remember)
    before = torch.get_float32_matmul_precision()
    limits = benchmark.measure_limits(CPU, Stopwatch(1.0), size=10)
    assert torch.get_float32_matmul_precision() == before
    assert seen == [
        (torch.bfloat16, "highest"),
        (torch.float16, "highest"),
        (torch.float32, "highest"),
        (torch.float32, "high"),
    ]
    assert limits.operations_per_second == {
        "bfloat16": 1.0,
        "float16": 2.0,
        "float32": 3.0,
        "float32 with tf32 products": 4.0,
    }


@pytest.mark.parametrize(
    "moved, operations, bound",
    [
        (1000, 99, (1.0, "bytes")),
        (1000, 150, (1.5, "operations")),
        (1000, 0, (1.0, "bytes")),
    ],
)
def test_bound_is_the_larger_of_moving_and_computing(moved, operations, bound):
    time, deciding = LIMITS.bound(moved, operations, "float32")
    assert (pytest.approx(time), deciding) == bound


def test_a_row_says_what_ran_where_and_how_fast():
    # kernel forward and backward, then plain torch forward and backward
    forward, backward, without_gradient = rows_of(stopwatch=Stopwatch(2.0, 4.0, 6.0, 3.0, 1.0))
    assert forward["case"] == "4 numbers"
    assert forward["shapes"] == [[4]]
    assert forward["dtype"] == "float32"
    assert [row["pass"] for row in (forward, backward)] == ["forward", "backward"]
    assert without_gradient["case"] == "3 by 2"
    assert forward["bytes"] == 32
    assert forward["bound_ms"] == pytest.approx(0.032)
    assert forward["times_the_bound"] == pytest.approx(2 / 0.032)
    assert forward["gigabytes_per_second"] == pytest.approx(32 / 2e-3 / 1e9)
    assert forward["peers"] == {"plain torch": {"ms": 6.0, "kernel_times_faster": 3.0}}
    assert backward["peers"] == {"plain torch": {"ms": 3.0, "kernel_times_faster": 0.75}}
    json.dumps([forward, backward])


def test_operations_give_a_rate_and_may_set_the_bound():
    counted = replace(DOUBLING, operations=lambda x: {"forward": 800, "backward": 1600})
    forward, backward, _ = rows_of(counted)
    assert forward["teraflops"] == pytest.approx(800 / 1e-3 / 1e12)
    assert (forward["bound_ms"], forward["bound_by"]) == (pytest.approx(8.0), "operations")
    assert backward["bound_ms"] == pytest.approx(16.0)
    assert rows_of()[0]["teraflops"] == 0


def test_a_peer_that_raises_is_reported_with_its_reason_and_the_rest_is_timed():
    def refuses(x):
        warnings.warn(
            "Flash attention kernel not used because: (Triggered internally at a.cpp:1.)",
            stacklevel=1,
        )
        warnings.warn("Expected half. (Triggered internally at /src/b.cpp:2.)", stacklevel=1)
        raise RuntimeError("No available kernel.\nSee /src/me/file.py")

    named = replace(DOUBLING, peers=lambda case: {"refuses": refuses, "agrees": doubled})
    forward, backward, _ = rows_of(named)
    for row in (forward, backward):
        assert row["peers"]["refuses"] == {
            "error": "RuntimeError: No available kernel. Expected half."
        }
        assert row["peers"]["agrees"]["ms"] == 1.0
    assert any("Expected half" in line for line in benchmark.as_lines(forward))


def test_a_peer_without_a_backward_pass_keeps_its_forward_time():
    named = replace(DOUBLING, peers=lambda case: {"detached": lambda x: 2 * x.detach()})
    forward, backward, _ = rows_of(named)
    assert forward["peers"]["detached"]["ms"] == 1.0
    assert "does not require grad" in backward["peers"]["detached"]["error"]


@pytest.mark.parametrize(
    "other, message",
    [
        (lambda x: 2.1 * x, "differs from the kernel's by 5.0e-02"),
        (lambda x: x * torch.nan, "differs"),
        (lambda x: doubled(x)[..., :1], "has shape"),
    ],
)
def test_a_peer_that_computes_something_else_gets_no_time(other, message):
    row = rows_of(replace(DOUBLING, peers=lambda case: {"other": other}))[0]
    assert message in row["peers"]["other"]["error"]


def test_peers_that_cannot_be_made_do_not_stop_the_kernel():
    def cannot(case):
        raise torch.OutOfMemoryError("no room for a mask")

    row = rows_of(replace(DOUBLING, peers=cannot))[0]
    assert row["kernel_ms"] == 1.0
    assert row["peers"]["other peers"] == {"error": "out of memory"}


def test_a_kernel_that_fails_where_it_is_timed_gives_a_row_with_the_error():
    def fails(x):
        raise torch.OutOfMemoryError

    rows = rows_of(replace(DOUBLING, kernel=fails))
    assert [(row["case"], row["error"]) for row in rows] == [
        ("4 numbers", "out of memory"),
        ("4 numbers", "out of memory"),
        ("3 by 2", "out of memory"),
    ]
    assert "out of memory" in benchmark.as_lines(rows[0])[0]


def test_arguments_that_do_not_fit_end_the_cases_of_a_dtype():
    def too_large(dtype, device):
        yield from two_cases(dtype, device)
        raise torch.OutOfMemoryError

    rows = rows_of(replace(DOUBLING, timed_cases=too_large))
    assert rows[-1]["error"] == "out of memory"
    assert len(rows) == 4
    assert "out of memory" in benchmark.as_lines(rows[-1])[0]


# Peers of attention, against the definition.


def definition(query, key, value, is_causal, query_offset, window, key_mask, scale):
    """Softmax attention by its definition: a loop over queries, each with its own list of keys."""
    group = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    read = query.new_zeros(*query.shape[:-1], value.shape[-1])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        position = i + query_offset
        keys = [
            j
            for j in range(key.shape[2])
            if not ((is_causal or window) and j > position)
            and not (window and j <= position - window)
            and (key_mask is None or key_mask.expand(query.shape[0], -1)[b, j])
        ]
        weights = torch.softmax(scale * key[b, h // group, keys] @ query[b, h, i], 0)
        read[b, h, i] = weights @ value[b, h // group, keys]
    return read


NOTHING = {
    "is_causal": False,
    "query_offset": 0,
    "window": None,
    "key_mask": None,
    "scale": None,
}
FIRST_WHOLE = torch.arange(20) < torch.tensor([[20], [13]])
PADDED = torch.arange(20) < torch.tensor([[13], [20]])
PROBLEMS = {
    "full": ((20, 20), NOTHING),
    "causal": ((20, 20), NOTHING | {"is_causal": True}),
    "causal, fewer queries": ((7, 20), NOTHING | {"is_causal": True, "query_offset": 13}),
    "causal, more queries": ((25, 20), NOTHING | {"is_causal": True}),
    "one query that sees all": ((1, 20), NOTHING | {"is_causal": True, "query_offset": 19}),
    "causal, the first query misses one key": (
        (2, 20),
        NOTHING | {"is_causal": True, "query_offset": 18},
    ),
    "window": ((20, 20), NOTHING | {"window": 6}),
    "window of the last query": ((1, 20), NOTHING | {"window": 6, "query_offset": 19}),
    "window as long as the sequence": ((20, 20), NOTHING | {"window": 20}),
    "window one shorter than the sequence": ((20, 20), NOTHING | {"window": 19}),
    "padding": ((20, 20), NOTHING | {"key_mask": PADDED}),
    "padding for all": ((20, 20), NOTHING | {"key_mask": PADDED[:1]}),
    "causal and padding": ((20, 20), NOTHING | {"is_causal": True, "key_mask": PADDED}),
    "causal, the second padded": (
        (20, 20),
        NOTHING | {"is_causal": True, "key_mask": FIRST_WHOLE},
    ),
    "scale": ((20, 20), NOTHING | {"scale": 0.3}),
}


def tensors(queries: int, keys: int, key_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return tuple(
        torch.randn(2, heads, length, 16, generator=draw)
        for heads, length in [(4, queries), (key_heads, keys), (key_heads, keys)]
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_peers_compute_what_the_definition_says(name):
    (queries, keys), options = PROBLEMS[name]
    query, key, value = tensors(queries, keys)
    exact = definition(query, key, value, **options)
    math = peers.attention_peers(query, key, value, **options)["SDPA, math"]
    torch.testing.assert_close(math(query, key, value, "more"), exact, rtol=1e-5, atol=1e-5)
    support = peers.support_of(
        query, key, *(options[k] for k in ("is_causal", "query_offset", "window", "key_mask"))
    )
    flex = peers.flex_read(flex_attention, query, key, support, options["scale"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uncompiled, it says that it is slow
        torch.testing.assert_close(flex(query, key, value, "more"), exact, rtol=1e-5, atol=1e-5)


def test_each_backend_stands_alone_and_compiled_flex_beside_them():
    named = peers.attention_peers(*tensors(4, 4))
    assert list(named) == [
        "SDPA, flash",
        "SDPA, memory-efficient",
        "SDPA, cuDNN",
        "SDPA, math",
        "FlexAttention",
    ]
    with pytest.raises(RuntimeError, match="No viable backend"):  # the CPU has no cuDNN
        named["SDPA, cuDNN"](*tensors(4, 4))


@pytest.mark.parametrize(
    "name, chosen",
    [
        ("full", {"attn_mask": None}),
        ("causal", {"is_causal": True}),
        ("window as long as the sequence", {"is_causal": True}),
        ("one query that sees all", {"attn_mask": None}),
    ],
)
def test_a_backend_that_takes_no_mask_is_given_none_where_none_is_needed(name, chosen, monkeypatch):
    (queries, keys), options = PROBLEMS[name]
    query, key, value = tensors(queries, keys)
    asked = {}
    monkeypatch.setattr(
        peers, "scaled_dot_product_attention", lambda *t, **options: asked.update(options)
    )
    peers.attention_peers(query, key, value, **options)["SDPA, math"](query, key, value)
    assert asked == {"scale": None, "enable_gqa": True} | chosen


def test_is_causal_is_said_of_squares_alone():
    square, tall = torch.ones(1, 1, 20, 20).tril().bool(), torch.ones(1, 1, 25, 20).tril().bool()
    query, key, _ = tensors(25, 20)
    assert peers.is_plain_causal(query[:, :, :20], key, square)
    assert not peers.is_plain_causal(query, key, tall)  # forms differ in what they make of it
