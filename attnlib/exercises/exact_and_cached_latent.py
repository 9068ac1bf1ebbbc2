"""The exercise of chapter 1.4 on one latent vector a token, read without making keys."""

import torch
from torch import Tensor

from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.exact_and_cached_programs import random
from attnlib.exercises.registry import checker, mutant, solution

# ---- 1.4.7 latent attention with absorbed projections


@checker("1.4.7")
def absorbed_projections(answer) -> str:
    """(U_K^T q).c / sqrt(D) are the scores, U_V (sum w c) is the read: no key, no value."""
    inputs = _latents(3, 7)
    query, latent, up_key, up_value = inputs
    given = tensor_of(call(answer, *inputs), (2, 3, 4))
    scores = _scores(query, latent, up_key)
    value = latent @ up_value.mT
    likely = (
        (
            scores / 5**0.5,
            "the scale is 1/sqrt(R) of the latent; it belongs to the keys, 1/sqrt(D)",
        ),
        (scores, "the scale 1/sqrt(D) is missing"),
    )
    for logits, message in likely:
        require(not close(given, torch.softmax(logits, -1) @ value), message)
    linear = close(given, scores / 6**0.5 @ value)
    require(not linear, "the softmax is missing: only the linear steps around it can be moved")
    weights = torch.softmax(scores / 6**0.5, -1)
    mean_key = torch.softmax(_scores(query, latent, up_key.mean(0, keepdim=True)) / 6**0.5, -1)
    require(
        not close(given, mean_key @ value),
        "the heads share one up_key: each head has its own, only the latent is shared",
    )
    one_value = latent @ up_value.mean(0).mT
    require(
        not close(given, weights @ one_value),
        "the heads share one up_value: each head has its own, only the latent is shared",
    )
    require(close(given, weights @ value), "not the read of keys U_K c and values U_V c")
    _no_keys(answer)
    return "Equal to attention with keys and values, and neither is ever made."


def _latents(queries: int, keys: int, width: int = 6, value_width: int = 4, rank: int = 5):
    """Two heads: query (2, N, D), latent (M, R), up_key (2, D, R), up_value (2, E, R)."""
    shapes = (2, queries, width), (keys, rank), (2, width, rank), (2, value_width, rank)
    return random(152, *shapes)


def _scores(query: Tensor, latent: Tensor, up_key: Tensor) -> Tensor:
    return query @ (latent @ up_key.mT).mT


def _no_keys(answer) -> None:
    """At decoding, keys of every head would be H M D numbers, values H M E, latents M R."""
    keys, width, value_width = 512, 24, 16
    inputs = _latents(1, keys, width, value_width, rank=8)
    largest = largest_tensor(lambda: call(answer, *inputs))
    require(
        largest < 2 * keys * width,
        f"an operation makes {largest} numbers, the keys of every head: bring up_key to the query",
    )
    require(
        largest < 2 * keys * value_width,
        f"an operation makes {largest} numbers, the values of every head: apply up_value to the "
        "latent that was read, after the sum over the keys",
    )


@solution("1.4.7")
def absorbed(query, latent, up_key, up_value):
    scores = query @ up_key @ latent.mT / query.shape[-1] ** 0.5
    return torch.softmax(scores, -1) @ latent @ up_value.mT


@mutant("1.4.7", "the keys of every head")
def explicit(query, latent, up_key, up_value):
    scores = _scores(query, latent, up_key) / query.shape[-1] ** 0.5
    return torch.softmax(scores, -1) @ (latent @ up_value.mT)


@mutant("1.4.7", "the values of every head")
def only_the_key_absorbed(query, latent, up_key, up_value):
    scores = query @ up_key @ latent.mT / query.shape[-1] ** 0.5
    return torch.softmax(scores, -1) @ (latent @ up_value.mT)


@mutant("1.4.7", "belongs to the keys")
def scale_of_the_latent(query, latent, up_key, up_value):
    scores = query @ up_key @ latent.mT / latent.shape[-1] ** 0.5
    return torch.softmax(scores, -1) @ latent @ up_value.mT


@mutant("1.4.7", "scale 1/sqrt(D) is missing")
def no_scale(query, latent, up_key, up_value):
    return torch.softmax(query @ up_key @ latent.mT, -1) @ latent @ up_value.mT


@mutant("1.4.7", "the softmax is missing")
def no_softmax(query, latent, up_key, up_value):
    return query @ up_key @ latent.mT / query.shape[-1] ** 0.5 @ latent @ up_value.mT


@mutant("1.4.7", "share one up_key")
def one_key_for_all_heads(query, latent, up_key, up_value):
    return absorbed(query, latent, up_key.mean(0, keepdim=True), up_value)


@mutant("1.4.7", "share one up_value")
def one_value_for_all_heads(query, latent, up_key, up_value):
    return absorbed(query, latent, up_key, up_value.mean(0, keepdim=True))


@mutant("1.4.7", "must have shape (2, 3, 4), got (2, 3, 5)")
def the_latent_is_read(query, latent, up_key, up_value):
    scores = query @ up_key @ latent.mT / query.shape[-1] ** 0.5
    return torch.softmax(scores, -1) @ latent


@mutant("1.4.7", "not the read of keys")
def softmax_over_the_queries(query, latent, up_key, up_value):
    scores = query @ up_key @ latent.mT / query.shape[-1] ** 0.5
    return torch.softmax(scores, -2) @ latent @ up_value.mT


@mutant("1.4.7", "raised RuntimeError")
def up_key_transposed(query, latent, up_key, up_value):
    return absorbed(query, latent, up_key.mT, up_value)
