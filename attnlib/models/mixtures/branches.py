"""A frozen attention layer and a personal copy of it, with a router for each pixel."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.scene_denoiser import SceneDenoiser, patch_masks
from attnlib.read.branches import background_loss, mixed_branches

PRIOR, PERSONAL = 0, 1


class PersonalBranch(nn.Module):
    r"""y = R_prior(x) frozen(x, words) + R_personal(x) personal(x, words of the subject)

    The frozen layer never learns and is never told of the subject. The personal layer starts as its
    copy and reads, where a word means the subject, that word with a learnt vector added. The router
    R = softmax(W x) starts with small normal numbers, so that both branches begin with about half.
    Inside `forced(model, branch)` one branch has all of it.

    Shapes: pixels (batch, N, width), words (batch, M, width), subject (batch, M) bool
    -> (batch, N, width). Cost: twice that of the layer. After a call, `routed` holds the router's
    decision (batch, N, 2). Raises TypeError for another kind of layer.
    Source: Wang et al. (2024), "MoA: Mixture-of-Attention".
    """

    def __init__(self, frozen: MultiHeadAttention):
        super().__init__()
        if not isinstance(frozen, MultiHeadAttention):
            raise TypeError(f"frozen must be a MultiHeadAttention, got {type(frozen).__name__}")
        width = frozen.to_query.in_features
        self.personal = copy.deepcopy(frozen).requires_grad_(True)
        self.frozen = copy.deepcopy(frozen).requires_grad_(False)
        self.subject = nn.Parameter(torch.zeros(width))
        self.to_router = nn.Linear(width, 2, bias=False)
        nn.init.normal_(self.to_router.weight, std=0.02)
        self.forced: int | None = None
        self.routed: Tensor | None = None

    def router(self, pixels: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N 2"]:
        """How much of the prior and of the personal branch each pixel reads; rows sum to one."""
        if self.forced is not None:
            return torch.eye(2).to(pixels)[self.forced].expand(*pixels.shape[:2], 2)
        return self.to_router(pixels).softmax(-1)

    def forward(
        self,
        pixels: Float[Tensor, "batch N width"],
        words: Float[Tensor, "batch M width"],
        subject: Bool[Tensor, "batch M"] | None = None,
    ) -> Float[Tensor, "batch N width"]:
        """The mixture of both branches at each pixel."""
        personal_words = words
        if subject is not None:
            personal_words = words + subject[..., None] * self.subject
        both = torch.stack((self.frozen(pixels, words), self.personal(pixels, personal_words)), 1)
        self.routed = self.router(pixels)
        return mixed_branches(both, self.routed)

    def __getstate__(self) -> dict:
        """Everything but the last call's decision, so that a trained layer can be copied."""
        return {**self.__dict__, "routed": None}


def personalized(model: SceneDenoiser, *, seed: int = 0) -> SceneDenoiser:
    """A copy of a denoiser that is frozen but for a personal branch in each word attention.

    What learns are the personal copies, the subject's vectors and the routers, which start from
    `seed`. The paper puts branches into the layers that read pixels as well.
    Raises TypeError for another model.
    """
    if not isinstance(model, SceneDenoiser):
        raise TypeError(f"model must be a SceneDenoiser, got {type(model).__name__}")
    personal = copy.deepcopy(model).requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in personal.blocks:
            block.word_attention = PersonalBranch(block.word_attention)
    return personal


def branches_of(model: nn.Module) -> list[PersonalBranch]:
    """All personal branches of a model. Raises ValueError where there is none."""
    found = [layer for layer in model.modules() if isinstance(layer, PersonalBranch)]
    if not found:
        raise ValueError("model must hold at least one PersonalBranch, got none")
    return found


@contextmanager
def forced(model: nn.Module, branch: int) -> Iterator[None]:
    """Inside, every router gives all to `branch`: 0 the prior, 1 the personal one.

    Raises ValueError for another branch or a model without branches, before anything changes.
    """
    if branch not in (PRIOR, PERSONAL):
        raise ValueError(f"branch must be 0 (prior) or 1 (personal), got {branch!r}")
    layers = branches_of(model)
    before = [layer.forced for layer in layers]
    try:
        for layer in layers:
            layer.forced = branch
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.forced = value


def routed(model: nn.Module) -> Float[Tensor, "layers batch N 2"]:
    """What the routers decided in the last call, layer by layer.

    Raises ValueError for a model that has not been called yet.
    """
    maps = [layer.routed for layer in branches_of(model)]
    if any(one is None for one in maps):
        raise ValueError("model must have been called before its routers can be asked")
    return torch.stack(maps)


def personal_loss(model: nn.Module, batch: tuple, *, weight: float) -> tuple[Tensor, Tensor]:
    """The error on the subject's pixels, and `weight` times the `background_loss` of the routers.

    Takes batches of `noisy_scenes`, whose first object is the subject. The second number is the
    error alone. The background has no error of its own: there the prior branch already knows.
    """
    noisy, level, scenes = batch
    mask = scenes.masks[:, 0]
    wrong = (model(noisy, level, scenes.words) - scenes.images).square().mean(1)
    error = (wrong * mask).sum() / mask.sum()
    router = routed(model).mean(0)
    return error + weight * background_loss(router, patch_masks(mask)), error.detach()
