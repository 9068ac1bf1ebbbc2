"""Experiments on shapes of windows: denoising by rectangles and squares, entropy of long rows."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from attnlib.choices import check_choice
from attnlib.models.aggregated_foveal import START_TEMPERATURE
from attnlib.models.rectangle_windows import RectangleWindowAttention
from attnlib.tasks.striped_images import StripedImages
from attnlib.training import train

WINDOWS = {"square": (4, 4), "rectangle": (2, 8), "line": (1, 16)}
"""Height and width of windows of sixteen places."""


class WindowDenoiser(nn.Module):
    """A noisy image in, a clean one out: two blocks of rectangle windows, the second one shifted.

    Every pixel is a token with a learned row and column vector. Shapes: images
    (batch, 1, size, size) -> the same.
    """

    def __init__(
        self, size: int, window: tuple[int, int], *, width: int = 16, heads: int = 2, seed: int = 0
    ):
        super().__init__()
        self.size = size
        height, wide = window
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(1, width)
            self.rows = nn.Parameter(0.5 * torch.randn(size, 1, width))
            self.columns = nn.Parameter(0.5 * torch.randn(1, size, width))
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
            self.attentions = nn.ModuleList(
                RectangleWindowAttention(
                    width, heads, grid=(size, size), height=height, width=wide, shifted=shifted
                )
                for shifted in (False, True)
            )
            self.perceptrons = nn.ModuleList(
                nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
                for _ in range(2)
            )
            self.to_gray = nn.Linear(width, 1)

    def forward(self, images: Float[Tensor, "batch 1 size size"]) -> Tensor:
        """The guess of the clean images."""
        x = self.embedding(images.flatten(-2).mT) + (self.rows + self.columns).flatten(0, 1)
        for block, (attention, perceptron) in enumerate(
            zip(self.attentions, self.perceptrons, strict=True)
        ):
            x = x + attention(self.norms[2 * block](x))
            x = x + perceptron(self.norms[2 * block + 1](x))
        return images + self.to_gray(x).mT.unflatten(-1, (self.size, self.size))


def denoising_loss(model: nn.Module, batch: tuple) -> tuple[Tensor, Tensor]:
    """The mean squared error, as an objective for `train` (twice: no accuracy)."""
    loss = (model(batch.images) - batch.clean).square().mean()
    return loss, loss.detach()


def denoise(window: str, images: str, seed: int, *, steps: int = 300) -> dict[str, float]:
    """Trains a denoiser with one shape of windows on one kind of images.

    Returns its squared error on new images (that of the noisy image is 1) and its parameters.
    """
    check_choice("window", window, tuple(WINDOWS))
    task = StripedImages(kind=images)
    model = WindowDenoiser(task.size, WINDOWS[window], seed=seed)
    train(
        model,
        task.batches(16, seed),
        steps=steps,
        learning_rate=5e-3,
        objective=denoising_loss,
        progress=False,
    )
    with torch.no_grad():
        error = denoising_loss(model, task.batch(256, 10_000 + seed))[0].item()
    return {"error": error, "parameters": float(sum(p.numel() for p in model.parameters()))}


def row_entropy(scale: str, keys: int, seed: int, *, width: int = 16) -> dict[str, float]:
    """Mean entropy of 256 rows of cosine attention to `keys` random keys, in nats.

    The cosines are multiplied with tau log n ("log n"), or with tau log 64 for every n ("fixed"),
    tau the paper's value at the start, so that the two agree at 64 keys.
    """
    check_choice("scale", scale, ("log n", "fixed"))
    generator = torch.Generator().manual_seed(seed)
    query = normalize(torch.randn(256, width, generator=generator), dim=-1)
    key = normalize(torch.randn(keys, width, generator=generator), dim=-1)
    length = torch.tensor(float(keys if scale == "log n" else 64))
    log_weights = (START_TEMPERATURE * length.log() * query @ key.mT).log_softmax(-1)
    entropy = -(log_weights.exp() * log_weights).sum(-1).mean()
    return {"entropy": entropy.item()}
