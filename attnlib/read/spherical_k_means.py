r"""Spherical k-means, one batch at a time: centroids that follow the directions of tokens.

Tokens and centroids lie on the sphere of radius sqrt(D), so the nearest centroid is the one with
the largest product. The centroids are the state: they are given, and the moved ones come back.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import layer_norm, one_hot

from attnlib.checks import check_count, check_dtype, check_tensor

Tokens = Float[Tensor, "*heads N D"]
Centroids = Float[Tensor, "*#heads G D"]


def on_sphere(tokens: Tokens) -> Tokens:
    r"""Each token less the mean of its D numbers, at length sqrt(D).

    .. math:: \mathrm{norm}(x) = (x - \bar x) \,/\, \sqrt{\tfrac{1}{D} \sum_d (x_d - \bar x)^2}

    This is layer norm without scale and bias. A token whose numbers are all equal has no direction
    and becomes zero.
    Source: Roy et al. (2021), section 4.1.
    """
    check_tensor("tokens", tokens)
    return layer_norm(tokens, tokens.shape[-1:])


def at_least_single(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32 where they are in half precision, in which choices would change."""
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def affinity(tokens: Tokens, centroids: Centroids) -> Float[Tensor, "*heads N G"]:
    r"""The product of each token, put on the sphere, with each centroid.

    Shapes: tokens (..., N, D), centroids (G, D) for all heads or (heads, G, D) -> (..., N, G).
    Cost: 2 N G D operations a head. Raises ValueError for centroids that do not fit the tokens.
    """
    check_centroids(tokens, centroids)
    return on_sphere(tokens) @ centroids.mT


def nearest_centroid(tokens: Tokens, centroids: Centroids) -> Int[Tensor, "*heads N"]:
    """For each token the number of the centroid with the largest product."""
    return affinity(tokens, centroids).argmax(-1)


def first_centroids(tokens: Tokens, groups: int) -> Float[Tensor, "*heads G D"]:
    """`groups` tokens that lie far apart, to start with: no cluster begins empty.

    The first is token 0; each further one is the token whose nearest centroid so far is farthest.
    Shapes: tokens (..., N, D) -> (..., groups, D). Cost: 2 N groups D operations.
    Raises ValueError for more groups than tokens. Source: Gonzalez (1985), farthest-first.
    """
    check_count("groups", groups, least=1)
    directions = on_sphere(tokens)
    if groups > tokens.shape[-2]:
        raise ValueError(
            f"groups must be at most the number of tokens {tokens.shape[-2]}, got {groups}"
        )
    chosen = directions[..., :1, :]
    nearest = directions @ chosen.mT
    while chosen.shape[-2] < groups:
        place = nearest.argmin(dim=-2, keepdim=True).expand(*chosen.shape[:-2], 1, chosen.shape[-1])
        further = directions.gather(-2, place)
        chosen = torch.cat((chosen, further), dim=-2)
        nearest = torch.maximum(nearest, directions @ further.mT)
    return chosen


@torch.no_grad()
def moved_centroids(centroids: Centroids, tokens: Tokens, *, decay: float = 0.999) -> Centroids:
    r"""The centroids after one batch of tokens: each moves toward the mean of its own tokens.

    .. math:: \mu_g \leftarrow \mathrm{norm}\bigl(\lambda\, \mu_g
              + (1 - \lambda)\, \tfrac{1}{|S_g|} \textstyle\sum_{i \in S_g} \mathrm{norm}(x_i)\bigr)

    where S_g holds the tokens nearest to centroid g, over the whole batch, and lambda is `decay`.
    A centroid whose cluster is empty stays where it is, and so does one whose tokens are not all
    finite. No gradient goes through.
    Shapes: centroids (heads, G, D) or (G, D), then tokens of all heads move them; tokens
    (..., heads, N, D). Cost: 4 N G D operations a head.
    Source: Roy et al. (2021), algorithm 1, and their program, which divides the sum by the number
    of tokens; the norm after the step is what makes the means spherical.
    """
    check_decay(decay)
    nearest = nearest_centroid(tokens, centroids)
    member = one_hot(nearest, centroids.shape[-2]).to(tokens.dtype)
    sums = summed_to(member.mT @ on_sphere(tokens), centroids.dim())
    sizes = summed_to(member.sum(-2)[..., None], centroids.dim())
    moved = on_sphere(decay * centroids + (1 - decay) * sums / sizes.clamp(min=1))
    sure = (sizes > 0) & moved.isfinite().all(-1, keepdim=True)
    return torch.where(sure, moved, centroids)


def cluster_sizes(tokens: Tokens, centroids: Centroids) -> Int[Tensor, "*heads G"]:
    """How many tokens are nearest to each centroid; zero for an empty cluster."""
    return one_hot(nearest_centroid(tokens, centroids), centroids.shape[-2]).sum(-2)


def summed_to(x: Tensor, axes: int) -> Tensor:
    """The sum over the leading axes, so that `axes` are left."""
    return x.sum(dim=tuple(range(x.dim() - axes))) if x.dim() > axes else x


def check_centroids(tokens: Tokens, centroids: Centroids) -> None:
    """Check that centroids are (G, D) or (heads, G, D) with the heads and width of the tokens."""
    check_tensor("tokens", tokens)
    check_tensor("centroids", centroids)
    check_dtype("centroids", centroids, tokens)
    heads, width = tokens.shape[-3:-2], tokens.shape[-1]
    shapes = [(*lead, centroids.shape[-2], width) for lead in ((), (*heads,))]
    if centroids.dim() < 2 or tuple(centroids.shape) not in shapes or not centroids.shape[-2]:
        raise ValueError(
            f"centroids must have shape (groups, {width}) or {(*heads, 'groups', width)} with at "
            f"least one group, got {tuple(centroids.shape)}"
        )


def check_decay(decay: float) -> None:
    """Check that a decay lies in [0, 1]."""
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay <= 1:
        raise ValueError(f"decay must be a number from 0 to 1, got {decay!r}")
