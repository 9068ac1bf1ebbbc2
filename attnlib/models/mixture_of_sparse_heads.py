"""Mixture of sparse attention: each head chooses its own tokens, and they read one another."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attnlib.atlas import Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.score.positions import rotate

Choice = tuple[Float[Tensor, "batch heads T"], Int[Tensor, "batch heads T"]]


@mechanism(
    key="mosa-expert-choice",
    paper="mosa-expert-choice",
    chapter="6-sparse/content-routing",
    section="heads-that-choose",
    step="support",
    idea="each head scores all tokens, takes its best few, and they alone read one another",
    equation=r"y_{I_h} \mathrel{+}= W^O_h\, \mathrm{diag}(r_{I_h})\, \mathrm{softmax}(Q_h K_h^\top)"
    r" V_h, \quad r_h = \sigma(X w_h),\ I_h = \mathrm{top}_T(r_h)",
    cost="a head: 8 T width D + 4 T^2 D operations, 2 N width for its choice; T keys in the cache",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
class MixtureOfSparseHeads(nn.Module):
    r"""Heads that each take `top_k` of the N tokens; only those are projected, read and written.

    .. math:: r_h = \sigma(X w_h), \quad I_h = \mathrm{top}_T(r_h), \quad
              A_h = \mathrm{softmax}\bigl(Q_h K_h^\top / \sqrt{D}\bigr) V_h, \quad
              y_i = \sum_{h : i \in I_h} r_{hi}\, W^O_h A_{hi}

    with Q_h, K_h, V_h the projections of the tokens I_h of head h. With `is_causal` token i reads
    the chosen tokens at places up to its own. The factor r lets the router learn: through the
    choice itself no gradient goes. A token that no head takes gets zero.

    Which tokens are taken depends on the whole sequence, later tokens too; so in training a
    causal layer of this kind sees a little of the future.
    `position` is "none" or "rope", by the places in the whole sequence.
    Shapes: x (batch, N, width) -> (batch, N, width).
    Parameters: heads (4 width head_width + width). Cost: `operations_of_sparse_head` for each.
    Raises ValueError for more tokens than there are.
    Source: Piekos et al. (2025), "MoSA", section 2; the choice is that of Zhou et al. (2022).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        top_k: int,
        head_width: int | None = None,
        position: str = "none",
        is_causal: bool = False,
    ):
        super().__init__()
        for name, size in (("width", width), ("heads", heads), ("top_k", top_k)):
            check_count(name, size, least=1)
        check_choice("position", position, ("none", "rope"))
        if head_width is None and width % heads:
            raise ValueError(f"heads must divide width {width} or head_width be given, got {heads}")
        head_width = width // heads if head_width is None else head_width
        check_count("head_width", head_width, least=1)
        self.top_k, self.position, self.is_causal = top_k, position, is_causal
        self.to_router = nn.Linear(width, heads, bias=False)
        for name in ("to_query", "to_key", "to_value"):
            matrix = torch.randn(heads, width, head_width) * width**-0.5
            setattr(self, name, nn.Parameter(matrix))
        matrix = torch.randn(heads, head_width, width) * (heads * head_width) ** -0.5
        self.to_output = nn.Parameter(matrix)

    def choose(self, x: Float[Tensor, "batch N width"]) -> Choice:
        """The weights r and places I of the tokens of each head, in the order of the places."""
        if self.top_k > x.shape[1]:
            raise ValueError(
                f"top_k must be at most the number of tokens {x.shape[1]}, got {self.top_k}"
            )
        strength = self.to_router(x).sigmoid().mT
        places = strength.topk(self.top_k, dim=-1).indices.sort(dim=-1).values
        return strength.gather(-1, places), places

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"]:
        """The next tokens. Takes no mask and returns no weights: heads see different tokens."""
        if attn_mask is not None or return_weights:
            raise ValueError("attn_mask and return_weights must be left out: heads differ in keys")
        strength, places = self.choose(x)
        taken = x[torch.arange(len(x))[:, None, None], places]
        query, key, value = (
            torch.einsum("bhtw,hwd->bhtd", taken, matrix)
            for matrix in (self.to_query, self.to_key, self.to_value)
        )
        if self.position == "rope":
            query, key = rotated_at(query, places), rotated_at(key, places)
        read = attend(query, key, value, attn_mask=self.visible(places))
        read = torch.einsum("bhtd,hdw->bhtw", strength[..., None] * read, self.to_output)
        rows = places.flatten(1)[..., None].expand(-1, -1, x.shape[-1])
        return torch.zeros_like(x).scatter_add(1, rows, read.flatten(1, 2))

    def visible(self, places: Int[Tensor, "batch heads T"]) -> Bool[Tensor, "batch heads T T"]:
        """Which of the chosen tokens each chosen token sees: all, or those up to its own place."""
        earlier = places[..., :, None] >= places[..., None, :]
        return earlier if self.is_causal else torch.ones_like(earlier)

    @staticmethod
    def from_multi_head(attention: MultiHeadAttention, *, top_k: int) -> "MixtureOfSparseHeads":
        """Sparse heads with the projections of a layer; their router weighs all tokens 1/2."""
        width, heads = attention.to_query.in_features, attention.heads
        if attention.key_heads != heads:
            raise ValueError(f"attention must have {heads} key heads, got {attention.key_heads}")
        layer = MixtureOfSparseHeads(
            width, heads, top_k=top_k, position=attention.position, is_causal=attention.is_causal
        )
        layer = layer.to(attention.to_query.weight)
        with torch.no_grad():
            for name in ("to_query", "to_key", "to_value"):
                matrix = getattr(attention, name).weight.mT.unflatten(-1, (heads, -1))
                getattr(layer, name).copy_(matrix.transpose(0, 1))
            layer.to_output.copy_(attention.to_output.weight.mT.unflatten(0, (heads, -1)))
            layer.to_router.weight.zero_()
        return layer


class StridedHeads(MixtureOfSparseHeads):
    """The same heads with a fixed choice: head h takes tokens at equal distances, by place.

    The router weighs what it is given, but does not choose. The control of the choice by content.
    Source: the fixed sparse attention of Piekos et al. (2025), section 3.
    """

    def choose(self, x: Float[Tensor, "batch N width"]) -> Choice:
        """The weights r, and places that are the same for all sequences."""
        heads, length = self.to_router.out_features, x.shape[1]
        if self.top_k > length:
            raise ValueError(
                f"top_k must be at most the number of tokens {length}, got {self.top_k}"
            )
        stride = length // self.top_k
        first = torch.arange(heads, device=x.device)[:, None] % stride
        places = first + stride * torch.arange(self.top_k, device=x.device)
        places = places.expand(len(x), heads, self.top_k)
        return self.to_router(x).sigmoid().mT.gather(-1, places), places


class DenseAndSparseHeads(nn.Module):
    """A sum of dense heads and sparse heads: the hybrid that the paper trains.

    Shapes: (batch, N, width) -> (batch, N, width). Source: Piekos et al. (2025), section 3.
    """

    def __init__(self, dense: nn.Module, sparse: MixtureOfSparseHeads):
        super().__init__()
        self.dense, self.sparse = dense, sparse

    def forward(self, x: Float[Tensor, "batch N width"], **options) -> Tensor:
        """What the dense and the sparse heads read, added."""
        return self.dense(x, **options) + self.sparse(x, **options)


def rotated_at(
    x: Float[Tensor, "batch heads T D"], places: Int[Tensor, "batch heads T"]
) -> Float[Tensor, "batch heads T D"]:
    """Rotary encoding by the places that the tokens have in the whole sequence."""
    return rotate(x.flatten(0, -2), places.flatten()).view_as(x)


def operations_of_dense_head(length: int, width: int, head_width: int) -> int:
    r"""Operations of one dense head, forward: 8 N width D + 4 N^2 D, causal or not."""
    return 8 * length * width * head_width + 4 * length**2 * head_width


def operations_of_sparse_head(length: int, width: int, head_width: int, top_k: int) -> int:
    r"""Operations of one sparse head: 8 T width D + 4 T^2 D + 2 N width + T D.

    Source: Piekos et al. (2025), section 2, the router and the factor r counted with the head.
    """
    read = operations_of_dense_head(top_k, width, head_width)
    return read + 2 * length * width + top_k * head_width
