"""A gate over channels that a latent variable opens: the weight step of features."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_tensor


@mechanism(
    key="variational-attention-domains",
    paper="variational-attention-domains",
    chapter="2-weights/beyond-softmax-in-practice",
    section="a-gate-that-is-drawn",
    step="weight",
    idea="gates over channels from a latent variable whose prior depends on the domain",
    equation=r"x \odot \sigma(W z),\; z \sim N(\mu(x), \sigma(x)^2),\; \mathrm{KL\,to}\, N(m_d, 1)",
    cost="time T C + C R",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="single"
    ),
)
def gated_by_latent(
    x: Float[Tensor, "batch T C"],
    latent: Float[Tensor, "batch R"],
    matrix: Float[Tensor, "C R"],
    bias: Float[Tensor, " C"],
) -> Float[Tensor, "batch T C"]:
    """x * sigmoid(W z + b): the channels let through as far as the latent variable says.

    Raises TypeError or ValueError naming the argument that does not fit.
    Source: Chen et al. (2021) for the idea. Derived in the companion of chapter 2.1.
    """
    tensors = {"x": x, "latent": latent, "matrix": matrix, "bias": bias}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    if x.dim() != 3 or matrix.dim() != 2:
        raise ValueError(
            "x must have shape (batch, T, C) and matrix (C, R), "
            f"got {tuple(x.shape)} and {tuple(matrix.shape)}"
        )
    (batch, _, channels), states = x.shape, matrix.shape[1]
    wanted = {"latent": (batch, states), "matrix": (channels, states), "bias": (channels,)}
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensors[name].shape)}")
    return x * torch.sigmoid(latent @ matrix.T + bias)[:, None]
