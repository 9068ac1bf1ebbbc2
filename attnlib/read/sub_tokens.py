"""A token cut into parts that choose their experts alone, and put together again."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_count, check_tensor


@mechanism(
    key="sub-token-experts",
    paper="mh-moe",
    chapter="5-heads/mixtures-of-heads",
    section="sub-token-experts",
    step="read",
    idea="tokens cut into parts, each routed to experts of its own",
    equation=r"x_i W \to (x_{i1}, \ldots, x_{iP}), \quad x_{ip} + \sum_e g_e(x_{ip}) f_e(x_{ip})",
    cost="time N width^2 for each of two maps, and the experts'",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def split_tokens(
    x: Float[Tensor, "batch N width"], parts: int
) -> Float[Tensor, "batch N_times_parts width_of_part"]:
    """Each token as `parts` shorter ones in its place: (N, width) -> (N parts, width / parts).

    Nothing is computed; `merge_tokens` undoes it. Raises ValueError where `parts` does not divide
    the width. Source: Wu et al. (2024), "Multi-Head Mixture-of-Experts".
    """
    check_tensor("x", x)
    check_count("parts", parts, least=1)
    if x.shape[-1] % parts:
        raise ValueError(f"parts must divide the width {x.shape[-1]} of x, got {parts}")
    return rearrange(x, "b n (p w) -> b (n p) w", p=parts)


def merge_tokens(
    x: Float[Tensor, "batch N_times_parts width_of_part"], parts: int
) -> Float[Tensor, "batch N width"]:
    """Every `parts` tokens side by side as one: the inverse of `split_tokens`.

    Raises ValueError where `parts` does not divide the number of tokens.
    Source: Wu et al. (2024).
    """
    check_tensor("x", x)
    check_count("parts", parts, least=1)
    if x.shape[1] % parts:
        raise ValueError(f"parts must divide the number of tokens {x.shape[1]} of x, got {parts}")
    return rearrange(x, "b (n p) w -> b n (p w)", p=parts)
