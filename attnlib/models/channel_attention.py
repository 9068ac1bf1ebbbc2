"""Channel attention: channels are the tokens, and each of them sums up the whole image."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_attention, check_scale
from attnlib.read.heads import merge_heads, split_heads


def channel_attention(
    query: Float[Tensor, "*groups N D"],
    key: Float[Tensor, "*groups N D"],
    value: Float[Tensor, "*groups N D"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "*groups N D"]:
    r"""Softmax attention between the D channels of each group; N places are their features.

    .. math:: O^\top = \mathrm{softmax}(\mathrm{scale} \; Q^\top K)\, V^\top

    It is `attend` on transposed tensors. A weight is one number for two channels and the whole
    image, so every place takes part in every read. `scale` is D ** -0.5 unless given (the width of
    a group; the sum runs over N places, so scores grow with the image).

    Shapes: query, key, value (..., groups, N, D), one group as (N, D), -> the same.
    Cost: time 2 N D^2, memory D^2 for each group.
    Raises ValueError where query, key and value have not the same shape.
    Source: Ding et al. (2022), DaViT, eq. 3. Derived in chapter 8.1.
    """
    check_attention(query, key, value)
    check_scale(scale)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != query.shape:
            raise ValueError(
                f"{name} must have the shape {tuple(query.shape)} of query: channels are tokens "
                f"and places their features; got {tuple(tensor.shape)}"
            )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key, value, came = query.to(dtype), key.to(dtype), value.to(dtype), query.dtype
    weights = torch.softmax((scale * query.mT) @ key, dim=-1)
    return (value @ weights.mT).to(came)


@mechanism(
    key="davit-dual-attention",
    paper="davit-dual-attention",
    chapter="8-vision/windows-and-neighbourhoods",
    section="channels-as-tokens",
    step="read",
    idea="channels are the tokens: a group of D channels attends to itself over all places",
    equation=r"O_g^\top = \mathrm{softmax}(Q_g^\top K_g / \sqrt{D})\, V_g^\top",
    cost="time 2 N D width, linear in the number of places",
    promises=None,
    taxonomy=Taxonomy("self", "single", "soft", "multi-head"),
)
class ChannelAttention(nn.Module):
    r"""Project, split the channels into groups, let the channels of a group attend, project.

    .. math:: O_g^\top = \mathrm{softmax}(Q_g^\top K_g / \sqrt{D})\, V_g^\top, \qquad D = C / G

    A permutation of the places permutes the reads and does nothing else: the layer has no idea of
    what is near, which the spatial windows before it bring. The parameters do not depend on N.
    `scale` as in `channel_attention`.

    Shapes: x (batch, N, width) -> (batch, N, width). Cost: 4 N width^2 + 2 N D width.
    Raises ValueError where groups do not divide the width.
    Source: Ding et al. (2022), DaViT, section 3.3 (its released code scales by D as here, but
    compares keys with values and reads queries, which is the same up to the names).
    """

    def __init__(self, width: int, groups: int, *, scale: float | None = None):
        super().__init__()
        if groups < 1 or width % groups:
            raise ValueError(f"groups must divide width {width}, got {groups}")
        check_scale(scale)
        self.groups, self.scale = groups, scale
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.to_output = nn.Linear(width, width, bias=False)
        for layer in (self.to_query, self.to_key, self.to_value, self.to_output):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """Each channel of each place, mixed with the channels that agree over the image."""
        query, key, value = (
            split_heads(layer(x), self.groups)
            for layer in (self.to_query, self.to_key, self.to_value)
        )
        read = channel_attention(query, key, value, scale=self.scale)
        return self.to_output(merge_heads(read))
