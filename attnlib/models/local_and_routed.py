"""Half of the heads read near tokens, the other half the tokens of their cluster."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.read.chunked_softmax import chunked_softmax_attention
from attnlib.read.routing_attention import RoutingAttention
from attnlib.support import window as last_keys


class LocalAndRoutedHeads(nn.Module):
    r"""An operator whose first heads see a window and whose other heads are routed by content.

    Of `heads` heads the first `local_heads` read the last `window` keys, the others are
    `RoutingAttention` with `groups` centroids that take `top_k` tokens each. A routed head alone
    finds no neighbors, so the paper mixes the two kinds in every layer.
    Give an object, `operator=LocalAndRoutedHeads(16, heads=4, local_heads=2, ...)`.
    Source: Roy et al. (2021), section 4.1 and the settings of section 5.
    """

    def __init__(
        self,
        head_width: int,
        *,
        heads: int,
        local_heads: int,
        window: int,
        groups: int,
        top_k: int,
        decay: float = 0.999,
        seed: int = 0,
    ):
        super().__init__()
        check_count("window", window, least=1)
        check_count("local_heads", local_heads, least=1)
        check_count("heads", heads, least=local_heads + 1)
        self.local_heads, self.window = local_heads, window
        self.routing = RoutingAttention(
            head_width,
            heads=heads - local_heads,
            groups=groups,
            top_k=top_k,
            decay=decay,
            seed=seed,
        )

    def forward(
        self,
        query: Float[Tensor, "batch heads N D"],
        key: Float[Tensor, "batch heads N D"],
        value: Float[Tensor, "batch heads N E"],
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch heads N E"]:
        """The reads of the local heads, then those of the routed heads."""
        near, far = slice(None, self.local_heads), slice(self.local_heads, None)
        local = chunked_softmax_attention(
            query[:, near],
            key[:, near],
            value[:, near],
            support=last_keys(self.window, two_sided=not is_causal),
        )
        routed = self.routing(query[:, far], key[:, far], value[:, far], is_causal=is_causal)
        return torch.cat((local, routed), dim=1)
