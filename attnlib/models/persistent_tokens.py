"""A few learnt tokens that stand for a subject, in front of a model that is frozen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_count
from attnlib.models.blocks import Block
from attnlib.tasks.subjects import PictureQuestionTask


class PictureReader(nn.Module):
    """A small vision-language model: the things of a picture, words, a question -> an answer.

    Each thing is one token, the sum of the embeddings of its values; each word is one token; all
    attend to all, and the answer is read at the question's token. Any further tokens may stand in
    the place of the words. Shapes: pictures (batch, things, attributes), words (batch, T, width) of
    vectors, asked (batch) -> logits (batch, answers).
    """

    def __init__(
        self,
        task: PictureQuestionTask,
        *,
        width: int = 48,
        heads: int = 4,
        layers: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        self.task = task
        tokens = task.attributes * task.values
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.seen = nn.Embedding(tokens, width)
            self.said = nn.Embedding(tokens, width)
            self.question = nn.Embedding(1 + task.attributes, width)
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.to_answer = nn.Linear(width, task.answers)

    def token(self, values: Int[Tensor, "... attributes"]) -> Int[Tensor, "... attributes"]:
        """Each attribute has tokens of its own for its values."""
        return values + self.task.values * torch.arange(self.task.attributes)

    def words(self, values: Int[Tensor, "batch attributes"]) -> Float[Tensor, "batch A width"]:
        """The description in words: one token for each attribute."""
        return self.said(self.token(values))

    def forward(
        self,
        pictures: Int[Tensor, "batch things attributes"],
        words: Float[Tensor, "batch T width"],
        asked: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch answers"]:
        """Logits of the answers."""
        things = self.seen(self.token(pictures)).sum(-2)
        x = torch.cat((things, words, self.question(asked)[:, None]), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.to_answer(self.norm(x[:, -1]))


@mechanism(
    key="yollava-persistent-tokens",
    paper="yollava-persistent-tokens",
    chapter="7-memory/test-time-memory-in-practice",
    section="persistent-tokens",
    step="memory",
    idea="a few learnt tokens that stand for a subject; the model that reads them is frozen",
    equation=r"o_i = \mathrm{attention}(q_i, [K_{p}; K], [V_{p}; V]), \; p \text{ learnt}",
    cost="k width learnt numbers a subject; attention to k more keys",
    promises=None,
    taxonomy=Taxonomy("self", "single", "soft", "multi-head"),
)
class PersistentTokens(nn.Module):
    """`count` learnt tokens in the place of a description; the first is the subject's name.

    Only they learn: the `model` is frozen here and its parameters never change, so that without
    the tokens it answers as before, bit for bit. Shapes: pictures (batch, things, attributes),
    asked (batch) -> logits (batch, answers).
    Source: Nguyen et al. (2024), Yo'LLaVA; there a name and 16 latent tokens, and the
    output row of the name learns too. Companion of chapter 7.2.
    """

    def __init__(self, model: PictureReader, count: int, *, seed: int = 0):
        super().__init__()
        check_count("count", count, least=1)
        self.model = model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        width = model.said.embedding_dim
        self.tokens = nn.Parameter(torch.randn(count, width, generator=generator))

    def forward(
        self,
        pictures: Int[Tensor, "batch things attributes"],
        asked: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch answers"]:
        """What the frozen model answers when it reads the tokens in place of words."""
        return self.model(pictures, self.tokens.expand(pictures.shape[0], -1, -1), asked)


def answer_in_words(model: PictureReader, batch) -> tuple[Tensor, Tensor]:
    """An objective for `attnlib.training`: the thing is described in words."""
    return judged(model(batch.pictures, model.words(batch.words), batch.asked), batch.targets)


def answer_with_tokens(tokens: PersistentTokens, batch) -> tuple[Tensor, Tensor]:
    """An objective for `attnlib.training`: the thing is what the tokens stand for."""
    return judged(tokens(batch.pictures, batch.asked), batch.targets)


def judged(
    logits: Float[Tensor, "batch answers"], targets: Int[Tensor, " batch"]
) -> tuple[Tensor, Tensor]:
    """(cross-entropy, accuracy)."""
    accuracy = (logits.argmax(-1) == targets).float().mean()
    return nn.functional.cross_entropy(logits, targets), accuracy
