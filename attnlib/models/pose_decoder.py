"""Decoders of stick figures that differ in nothing but whom a token may read."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.choices import check_choice
from attnlib.models.group_pose import same_instance, same_type
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.support import Support, dense, everything
from attnlib.tasks.stick_figures import PARTS, FigureBatch, StickFigures
from attnlib.training import train

GROUPS = ("full", "grouped", "shuffled")


def supports_of(groups: str, instances: int) -> tuple[Support, Support]:
    """The supports of the two attentions of a block.

    "grouped": the own instance, then the own type. "full": everything, twice. "shuffled" (the
    control): groups of the same sizes, but drawn at random once, so that they mean nothing.
    """
    check_choice("groups", groups, GROUPS)
    if groups == "full":
        return everything, everything
    within, across = same_instance(instances, PARTS), same_type(instances, PARTS)
    if groups == "grouped":
        return within, across
    order = torch.randperm(instances * PARTS, generator=torch.Generator().manual_seed(0))
    return tuple(
        Support(lambda b, h, q, k, one=one: one(b, h, order[q], order[k]), f"shuffled {one.name}")
        for one in (within, across)
    )


class PoseDecoder(nn.Module):
    """Reports in, joints out.

    A token is what was seen of one part, plus a learned vector of its type and one of its instance;
    each block has two attentions, with the supports of `supports_of`, and a perceptron. All
    choices of `groups` have the same parameters.
    Shapes: seen (batch, instances, parts, 3) -> joints (batch, instances, parts - 1, 2).
    """

    def __init__(
        self,
        groups: str,
        *,
        instances: int = 4,
        width: int = 32,
        heads: int = 2,
        layers: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        masks = [
            dense(support, instances * PARTS, instances * PARTS)[0, 0]
            for support in supports_of(groups, instances)
        ]
        self.register_buffer("masks", torch.stack(masks), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(3, width)
            self.types = nn.Parameter(0.5 * torch.randn(PARTS, width))
            self.instances = nn.Parameter(0.5 * torch.randn(instances, 1, width))
            self.blocks = nn.ModuleList(PoseBlock(width, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.to_place = nn.Linear(width, 2)

    def forward(
        self, seen: Float[Tensor, "batch instances parts 3"]
    ) -> Float[Tensor, "batch instances joints 2"]:
        """Where the joints are."""
        if tuple(seen.shape[1:]) != (len(self.instances), PARTS, 3):
            raise ValueError(
                f"seen must have shape (batch, {len(self.instances)}, {PARTS}, 3), "
                f"got {tuple(seen.shape)}"
            )
        x = (self.embedding(seen) + self.types + self.instances).flatten(1, 2)
        for block in self.blocks:
            x = block(x, *self.masks)
        x = self.norm(x).unflatten(1, tuple(seen.shape[1:3]))
        middle = seen[:, :, -1:, :2]
        return middle + self.to_place(x[:, :, :-1])


class PoseBlock(nn.Module):
    """Attention under one mask, attention under another, a perceptron."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.first = MultiHeadAttention(width, heads)
        self.second = MultiHeadAttention(width, heads)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, first_mask: Tensor, second_mask: Tensor) -> Tensor:
        """The next tokens."""
        x = x + self.first(self.norms[0](x), attn_mask=first_mask)
        x = x + self.second(self.norms[1](x), attn_mask=second_mask)
        return x + self.perceptron(self.norms[2](x))


def joint_error(model: nn.Module, batch: FigureBatch) -> tuple[Tensor, Tensor]:
    """The mean distance of the joints, as an objective for `train` (twice: no accuracy)."""
    distance = (model(batch.seen) - batch.joints).square().sum(-1).add(1e-9).sqrt().mean()
    return distance, distance.detach()


def learn_poses(groups: str, seed: int, *, steps: int = 400) -> dict[str, float]:
    """Trains a decoder; returns its mean joint error on the way and at the end.

    `error_100`, `error_200` ...: the mean over the 25 training batches (always new) before that
    step; `error`: on new images at the end; `parameters`: the same for all groups.
    """
    task = StickFigures()
    model = PoseDecoder(groups, instances=task.instances, seed=seed)
    history = train(
        model, task.batches(16, seed), steps=steps, objective=joint_error, progress=False
    )
    values = {
        f"error_{step}": history.loss[step - 25 : step].mean().item()
        for step in range(100, steps + 1, 100)
    }
    with torch.no_grad():
        values["error"] = joint_error(model, task.batch(512, 10_000 + seed))[0].item()
    return values | {"parameters": float(sum(p.numel() for p in model.parameters()))}
