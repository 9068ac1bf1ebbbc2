"""The public check as a student meets it."""

import pytest
import torch

import attnlib
from attnlib import Promises, Taxonomy
from attnlib.atlas import Mechanism
from attnlib.conformance import ConformanceError, check
from attnlib.conformance.report import Broken
from attnlib.conformance.symmetry_checks import check_positions_tag
from attnlib.conformance.trial import Trial
from attnlib.support import window
from attnlib.weight import hardmax

STUDENT = Promises(clear_errors=False, shortest=1)


def my_attention(query, key, value, is_causal=False):
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return torch.softmax(scores, dim=-1) @ value


def broken_by(function, promises=STUDENT, **options):
    with pytest.raises(ConformanceError) as caught:
        check(function, promises, oracle=attnlib.attend, **options)
    return {row.promise: row.note for row in caught.value.report.broken}


def test_a_right_function_of_few_arguments_passes_and_the_report_is_a_table():
    report = check(my_attention, STUDENT, oracle=attnlib.attend)
    text = str(report)
    assert "my_attention" in text and "takes no attn_mask" in text
    assert len(text.splitlines()) == len(report.rows) + 1
    assert "no leak from the future" in {row.promise for row in report.kept}


def test_promises_that_are_not_kept_are_listed_in_one_error():
    with pytest.raises(ConformanceError, match="clear errors: a query with one dimension"):
        check(my_attention, oracle=attnlib.attend)


def test_a_known_mistake_is_named():
    def mine(query, key, value):
        return torch.softmax(query @ key.mT, dim=-1) @ value

    note = broken_by(mine)["equality with the oracle"]
    assert "scale-missing" in note and "not divided by sqrt(D)" in note


def test_a_mask_upside_down_is_called_so():
    def mine(query, key, value, is_causal=False):
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).triu()
        return attnlib.attend(query, key, value, attn_mask=mask if is_causal else None)

    assert "upside down" in broken_by(mine)["no leak from the future"]


def test_an_exception_breaks_the_promise_instead_of_the_check():
    def mine(query, key, value):
        if query.dtype == torch.bfloat16:
            raise NotImplementedError("no bfloat16")
        return my_attention(query, key, value)

    assert set(broken_by(mine)) == {"dtypes and rounding", "finite range"}


def test_half_precision_that_comes_back_as_float32_is_found():
    def mine(query, key, value):
        return my_attention(query.double(), key.double(), value.double()).to(
            torch.promote_types(query.dtype, torch.float32)
        )

    assert "gives a read of torch.float32" in broken_by(mine)["dtypes and rounding"]


def test_a_width_taken_from_the_query_is_found():
    def mine(query, key, value):
        return my_attention(query, key, value)[..., : query.shape[-1]]

    assert "(2, 3, 5, 6)" in broken_by(mine)["shape of the read"]


def test_a_square_mask_for_cross_attention_is_found():
    def mine(query, key, value):
        everything = torch.ones(query.shape[-2], query.shape[-2], dtype=torch.bool)
        return attnlib.attend(query, key, value, attn_mask=everything)

    assert "attn_mask must broadcast" in broken_by(mine)["cross-attention lengths"]


def test_numbers_read_in_the_order_of_memory_are_found():
    def mine(query, key, value):
        stored = torch.empty_like(key, memory_format=torch.contiguous_format)
        return my_attention(query, key.as_strided(stored.shape, stored.stride()), value)

    assert "a transposed view" in broken_by(mine)["non-contiguous inputs"]


def test_dropout_left_on_is_not_deterministic():
    def mine(query, key, value):
        return my_attention(query, key, torch.nn.functional.dropout(value, 0.1))

    assert "different reads" in broken_by(mine)["determinism"]


def test_a_batch_statistic_is_found():
    def mine(query, key, value):
        return my_attention(query - query.mean(0, keepdim=True), key, value)

    assert "sequence 0" in broken_by(mine)["batch independence"]


def test_weights_that_depend_on_values_are_found():
    def mine(query, key, value):
        return my_attention(query, key, value * value.norm(dim=-1, keepdim=True))

    assert "weighted sum" in broken_by(mine)["linear in the values"]


def test_a_sum_of_weights_above_one_is_found():
    assert "sum to 2" in broken_by(lambda q, k, v: 2 * my_attention(q, k, v))["weights sum to one"]


def test_a_negative_weight_is_found():
    def mine(query, key, value):
        return 2 * my_attention(query, key, value) - value.mean(-2, keepdim=True)

    assert "negative weight" in broken_by(mine)["weights not negative"]


def test_an_approximation_is_held_to_its_error():
    def mine(query, key, value):
        return my_attention(query * 1.01, key, value)

    close = Promises(clear_errors=False, shortest=1, exact=False, error=0.05)
    assert not check(mine, close, oracle=attnlib.attend).broken
    wrong = Promises(clear_errors=False, shortest=1, exact=False, error=1e-4)
    assert "off by" in broken_by(mine, wrong)["equality with the oracle"]


def test_arguments_reach_the_function_and_an_oracle_that_takes_them():
    def mine(query, key, value, *, matrix):
        scores = query @ matrix @ key.mT
        return torch.softmax(scores, dim=-1) @ value

    def right(query, key, value, *, matrix):
        return attnlib.attend(query, key, value, score=attnlib.score.general(matrix))

    def matrices(query, key, value):
        return {"matrix": 0.1 * torch.eye(query.shape[-1]).to(query)}

    assert check(mine, STUDENT, oracle=right, arguments=matrices).kept
    with pytest.raises(ConformanceError, match="off by"):
        check(mine, STUDENT, oracle=attnlib.attend, arguments=matrices)


def test_a_state_that_grows_breaks_the_promise_of_a_constant_one():
    promises = Promises(constant_state=True)
    with pytest.raises(ConformanceError, match="the state grows from 28 to 252"):
        check(attnlib.softmax_attention, promises)


def hard_attention(query, key, value):
    return attnlib.attend(query, key, value, weight=hardmax)


def local_attention(query, key, value):
    return attnlib.attend(query, key, value, support=window(4, two_sided=True))


@pytest.mark.parametrize(
    ("function", "positions"),
    [(my_attention, "soft"), (hard_attention, "hard"), (local_attention, "local")],
)
def test_the_tag_positions_is_true_of_the_weights(function, positions):
    check_positions_tag(Trial(function, Promises(), positions=positions))
    for other in {"soft", "hard", "local"} - {positions, "local" if positions == "hard" else ""}:
        with pytest.raises(Broken, match=f"tagged {other}"):
            check_positions_tag(Trial(function, Promises(), positions=other))


def test_an_entry_of_the_atlas_brings_its_promises_and_oracle():
    entry = Mechanism(
        key="mine",
        function=my_attention,
        step="weight",
        idea="",
        equation="",
        cost="",
        promises=STUDENT,
        taxonomy=Taxonomy("self", "single", "hard", "single"),
        oracle=attnlib.attend,
    )
    with pytest.raises(ConformanceError, match="is tagged hard"):
        check(entry)
