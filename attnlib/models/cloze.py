"""A small model that fills gaps: near keys for all tokens, all keys for those that it is told."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.blocks import Block
from attnlib.models.positions import TOKEN_SCALE
from attnlib.read.task_global import task_global_support
from attnlib.support import index_grid
from attnlib.tasks.two_documents import TwoDocuments
from attnlib.training import train

Choice = Callable[[Int[Tensor, "B N"]], Bool[Tensor, "B N"]]
"""Tokens -> which of them are global."""


class ClozeModel(nn.Module):
    r"""Tokens that look both ways, within a window and through the global tokens, then answers.

    .. math:: S_i = \{j : |i - j| < W\} \cup \{j : i \in G \text{ or } j \in G\}

    with G = `choose(tokens)`, another set for every text. Rotary positions; the blocks are those of
    the other models, and the support is their `attn_mask`: at these lengths the dense form.
    Shapes: tokens (batch, N) -> logits (batch, N, answers).
    """

    def __init__(
        self,
        vocabulary: int,
        answers: int,
        *,
        window: int,
        choose: Choice,
        width: int = 32,
        heads: int = 4,
        layers: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        check_count("window", window, least=1)
        self.window, self.choose = window, choose
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            nn.init.normal_(self.embedding.weight, std=TOKEN_SCALE)
            self.blocks = nn.ModuleList(Block(width, heads, position="rope") for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.to_answers = nn.Linear(width, answers, bias=False)

    def support(self, tokens: Int[Tensor, "B N"]) -> Bool[Tensor, "B 1 N N"]:
        """Who sees whom."""
        batch, length = tokens.shape
        seen = task_global_support(self.choose(tokens), self.window)
        return seen(*index_grid(torch.empty(batch, 1, length, 0), length))

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N answers"]:
        """Logits of the answers at each place."""
        x, mask = self.embedding(tokens), self.support(tokens)
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        return self.to_answers(self.norm(x))


def global_tokens(task: TwoDocuments, which: str) -> Choice:
    """Which tokens are global: "gaps", "none", or "others", as many words elsewhere.

    The others are the tokens `task.document // 2` places behind the gaps, counted round the text.
    """
    choices: dict[str, Choice] = {
        "gaps": task.is_gap,
        "none": lambda tokens: torch.zeros_like(tokens, dtype=torch.bool),
        "others": lambda tokens: task.is_gap(tokens).roll(task.document // 2, dims=1),
    }
    if which not in choices:
        raise ValueError(f"which must be one of {tuple(choices)}, got {which!r}")
    return choices[which]


def run_cloze(
    *, which: str, told: bool, seed: int, window: int = 3, steps: int = 300
) -> dict[str, float]:
    """Gaps filled by a model whose global tokens are the gaps, others, or none.

    `told`: the second document names the person itself. Values: `accuracy` of the gaps, `pairs` the
    mean number of pairs of a text.
    """
    task = TwoDocuments(told=told)
    model = ClozeModel(
        task.vocabulary, task.people, window=window, choose=global_tokens(task, which), seed=seed
    )
    train(model, task.batches(64, seed), steps=steps, seed=seed, progress=False)
    batch = task.batch(256, 9_000)
    with torch.no_grad():
        answers = model(batch.tokens).argmax(-1)
    pairs = model.support(batch.tokens).sum() / len(batch.tokens)
    right = answers[batch.is_gap] == batch.targets[batch.is_gap]
    return {"accuracy": float(right.float().mean()), "pairs": float(pairs)}
