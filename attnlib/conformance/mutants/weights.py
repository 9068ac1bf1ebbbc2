"""Wrong weights: what the softmax is taken of, and over what."""

import torch

from attnlib.attend import attend
from attnlib.checks import check_mask
from attnlib.conformance.mutants.register import mutant, uniform_attention
from attnlib.weight.softmax import softmax


@mutant()
def mask_after_softmax(query, key, value, **options):
    """The mask is laid on the weights after the softmax, so that rows no longer sum to one."""

    def weight(scores, support):
        return torch.softmax(scores, dim=-1).masked_fill(~support, 0.0)

    return attend(query, key, value, weight=weight, **options)


@mutant()
def padding_in_the_denominator(query, key, value, *, attn_mask=None, **options):
    """Padded keys are taken out of the numerator, but not out of the sum below it."""

    def weight(scores, support):
        weights = softmax(scores, support)
        if attn_mask is None:
            return weights
        check_mask(attn_mask, scores.shape)
        return weights.masked_fill(~attn_mask, 0.0)

    return attend(query, key, value, weight=weight, **options)


@mutant(
    "PetrochukM/PyTorch-NLP, issue 2; labmlai/annotated_deep_learning_paper_implementations, 146"
)
def softmax_over_queries(query, key, value, **options):
    """The softmax runs over the queries instead of the keys: columns sum to one, not rows."""

    def weight(scores, support):
        return softmax(scores.mT, support.mT).mT

    return attend(query, key, value, weight=weight, **options)


@mutant()
def no_max_subtraction(query, key, value, **options):
    """exp is taken of the bare scores, which overflows for large ones."""

    def weight(scores, support):
        powers = scores.exp().masked_fill(~support, 0.0)
        total = powers.sum(-1, keepdim=True)
        return powers / total.masked_fill(~support.any(-1, keepdim=True), 1.0)

    return attend(query, key, value, weight=weight, **options)


@mutant("awslabs/gluonts, pull request 1401; Shujun-He/RibonanzaNet, issue 5")
def mask_as_zero_score(query, key, value, **options):
    """Forbidden scores become 0 instead of minus infinity, so that they keep weight e^0."""

    def weight(scores, support):
        weights = torch.softmax(scores * support, dim=-1)
        return weights * support.any(-1, keepdim=True)

    return attend(query, key, value, weight=weight, **options)


@mutant("huggingface/transformers, issue 14859; TransformerLensOrg/TransformerLens, 319")
def mask_too_weak(query, key, value, **options):
    """Forbidden scores are lowered by 10000, which low scores of allowed keys reach too."""

    def weight(scores, support):
        weights = torch.softmax(scores - 1e4 * (~support).to(scores.dtype), dim=-1)
        return weights * support.any(-1, keepdim=True)

    return attend(query, key, value, weight=weight, **options)


@mutant("d2l-ai/d2l-en, pull request 2423")
def empty_row_uniform(query, key, value, **options):
    """A row without any allowed key reads the mean of all values instead of zero."""

    def weight(scores, support):
        return torch.softmax(scores.masked_fill(~support, torch.finfo(scores.dtype).min), dim=-1)

    return attend(query, key, value, weight=weight, **options)


@mutant("pytorch/pytorch, issues 103963 and 41508")
def empty_row_nan(query, key, value, **options):
    """A row without any allowed key is a softmax of minus infinities: NaN."""

    def weight(scores, support):
        return torch.softmax(scores.masked_fill(~support, -torch.inf), dim=-1)

    return attend(query, key, value, weight=weight, **options)


@mutant()
def weights_without_gradient(query, key, value, **options):
    """The read is right, but the weights are detached: query and key learn nothing."""

    def weight(scores, support):
        return softmax(scores.detach(), support)

    return attend(query, key, value, weight=weight, **options)


@mutant()
def single_precision_inside(query, key, value, **options):
    """The softmax is taken in float32 and turned back, so that float64 is float64 in name only."""

    def weight(scores, support):
        return softmax(scores.float(), support).to(scores.dtype)

    return attend(query, key, value, weight=weight, **options)


@mutant(oracle=uniform_attention)
def uniform_over_the_tensor(query, key, value, **options):
    """Uniform weights of 1/M, with M the length of the tensor instead of the allowed keys."""

    def weight(scores, support):
        return support.to(scores.dtype) / max(1, scores.shape[-1])

    return attend(query, key, value, weight=weight, **options)
