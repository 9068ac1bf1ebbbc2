"""A sum of outer products: what it is, what it holds, conditioning with and without an error."""

import pytest
import torch
from torch.nn.functional import normalize

from attnlib.memory.delta_rule import delta_rule_recurrent
from attnlib.memory.hebbian import (
    expected_lookup_error,
    hebbian_attention,
    hebbian_attention_step,
    hebbian_conditioning,
    hebbian_read,
    hebbian_write,
    lookup_error,
    orthogonal_keys,
    random_unit_keys,
    rescorla_wagner,
)
from attnlib.read.linear_attention import linear_attention


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_writing_in_two_parts_is_writing_at_once_and_the_state_is_kept():
    key, value = normal(2, 9, 5), normal(2, 9, 3, seed=1)
    first = hebbian_write(key[:, :4], value[:, :4])
    before = first.clone()
    both = hebbian_write(key[:, 4:], value[:, 4:], state=first)
    assert torch.equal(first, before)
    assert torch.allclose(both, hebbian_write(key, value), atol=1e-14)
    assert torch.allclose(hebbian_read(key, both), (key @ key.mT) @ value, atol=1e-13)


def test_it_is_linear_attention_with_the_identity_as_feature_map():
    query, key, value = normal(2, 7, 4), normal(2, 7, 4, seed=1), normal(2, 7, 3, seed=2)
    read = hebbian_attention(query, key, value, is_causal=True, scale=1.0, chunk=3)
    plain = linear_attention(
        query, key, value, is_causal=True, feature_map=lambda x: x, normalize=False
    )
    assert torch.allclose(read, plain, atol=1e-13)


def test_orthogonal_keys_hold_exactly_their_width_of_pairs():
    key, value = orthogonal_keys(16, 16, generator=generator()), normal(16, 4)
    assert torch.allclose(key @ key.mT, torch.eye(16, dtype=torch.float64), atol=1e-12)
    assert lookup_error(hebbian_write(key, value), key, value) < 1e-24
    with pytest.raises(ValueError, match="pairs must be at most the width 16, got 17"):
        orthogonal_keys(17, 16, generator=generator())


@pytest.mark.parametrize(("pairs", "width"), [(8, 16), (64, 32), (256, 64)])
def test_random_keys_err_by_pairs_over_width(pairs, width):
    errors = []
    for seed in range(20):
        key = random_unit_keys(pairs, width, generator=generator(seed))
        value = normal(pairs, 16, seed=100 + seed)
        errors.append(lookup_error(hebbian_write(key, value), key, value))
    measured = torch.stack(errors).mean().item()
    assert measured == pytest.approx(expected_lookup_error(pairs, width), rel=0.08)


def test_an_error_blocks_a_second_cue_and_a_sum_does_not():
    bell, both = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    present = torch.cat((bell.expand(20, 2), both.expand(20, 2))).double()
    outcome = torch.ones(40, dtype=torch.float64)
    blocked = rescorla_wagner(present, outcome, rate=0.3)[-1]
    control = rescorla_wagner(present[20:], outcome[20:], rate=0.3)[-1]
    assert blocked[1] < 1e-3
    assert control[1] == pytest.approx(0.5, abs=1e-6)
    without_error = hebbian_conditioning(present, outcome, rate=0.3)[-1]
    assert without_error.tolist() == pytest.approx([12.0, 6.0])


def test_rescorla_wagner_is_the_delta_rule_with_values_of_width_one():
    present, outcome = (normal(12, 3) > 0).double(), normal(12, seed=1)
    strengths = rescorla_wagner(present, outcome, rate=0.2)
    _, state = delta_rule_recurrent(present, present, outcome[:, None], beta=0.2)
    assert strengths.shape == (13, 3)
    assert torch.allclose(strengths[-1], state[:, 0], atol=1e-13)
    assert not strengths[0].any()


def test_wrong_input_is_named():
    key, value = normal(3, 4), normal(3, 2)
    cases = [
        (lambda: hebbian_read(key, None), "memory must hold something"),
        (lambda: hebbian_read(key, normal(5, 2)), "memory must have one row for each"),
        (lambda: hebbian_write(key, value, state=normal(4, 3)), "state must have shape"),
        (lambda: hebbian_write(key, value[:2]), "value must have one row for each key"),
        (lambda: rescorla_wagner(key, value[:, 0], rate=0.0), "rate must be positive"),
        (lambda: rescorla_wagner(key, value, rate=0.1), "outcome must have one number a trial"),
        (lambda: hebbian_conditioning(key[0], value[:, 0], rate=0.1), "present must have shape"),
        (lambda: random_unit_keys(3, 0, generator=generator()), "width must be at least 1"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="key"):
        hebbian_write(key.long(), value)


def test_half_precision_is_summed_in_single():
    key = normalize(normal(300, 8), dim=-1).to(torch.bfloat16)
    state = hebbian_write(key, key)
    assert state.dtype == torch.float32
    assert hebbian_read(key, state).dtype == torch.bfloat16


def test_the_step_stays_in_range_where_the_batch_does():
    query = torch.full((1, 3, 64), 10.0, dtype=torch.float16)
    value = torch.full((1, 3, 2), 5.0, dtype=torch.float16)
    read, _ = hebbian_attention_step(None, query, query, value)
    torch.testing.assert_close(read, hebbian_attention(query, query, value, is_causal=True))


def test_the_step_wants_one_key_a_query_and_a_scale():
    tokens = normal(1, 5, 4)
    with pytest.raises(ValueError, match="query"):
        hebbian_attention_step(None, tokens[:, :1], tokens, tokens)
    with pytest.raises(ValueError, match="scale"):
        hebbian_attention_step(None, tokens, tokens, tokens, scale=float("nan"))


def test_conditioning_with_an_unstable_rate_is_refused():
    present, outcome = torch.ones(60, 2), torch.ones(60)
    assert rescorla_wagner(present, outcome, rate=1.0)[-1].isfinite().all()
    with pytest.raises(ValueError, match=r"rate must keep rate \|x\|\^2 <= 2 .* got 3"):
        rescorla_wagner(present, outcome, rate=1.5)
    for rule in (rescorla_wagner, hebbian_conditioning):
        with pytest.raises(ValueError, match="rate must be positive and finite"):
            rule(present, outcome, rate=float("inf"))
