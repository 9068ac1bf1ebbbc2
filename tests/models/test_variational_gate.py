"""Gates over channels: what they let through, what the divergence is, what a draw does."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from attnlib.atlas import get
from attnlib.models.variational_gate import SqueezeGate, VariationalGate
from attnlib.weight.latent_gate import gated_by_latent


@pytest.fixture
def x():
    return torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def gate():
    torch.manual_seed(0)
    return VariationalGate(4, 8, 3, domains=3)


def test_a_squeeze_gate_multiplies_each_channel_by_one_number(x):
    gate = SqueezeGate(4, 8)
    ratio = gate(x) / x
    assert torch.allclose(ratio, gate.gates(x)[:, None].expand_as(x), atol=1e-4)
    assert ((gate.gates(x) > 0) & (gate.gates(x) < 1)).all()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(gate(x[:, order]), gate(x)[:, order], atol=1e-6)


def test_a_gate_by_hand():
    x = torch.tensor([[[2.0, 3.0]]])
    got = gated_by_latent(x, torch.tensor([[1.0]]), torch.tensor([[0.0], [1.0]]), torch.zeros(2))
    assert torch.allclose(got, torch.tensor([[[1.0, 3 / (1 + torch.e**-1)]]]))


def test_the_divergence_is_the_one_of_the_library(gate, x):
    domain = torch.tensor([0, 1, 2, 2, 1, 0])
    mean, log_variance = gate.posterior(x)
    wanted = kl_divergence(
        Normal(mean, torch.exp(log_variance / 2)), Normal(gate.prior[domain], 1.0)
    ).sum(-1)
    got = gate.divergence(x, domain)
    assert torch.allclose(got, wanted, atol=1e-6) and (got >= 0).all()


def test_with_one_prior_the_domain_does_not_matter(x):
    gate = VariationalGate(4, 8, 3, domains=1)
    first, second = (gate.divergence(x, torch.full((6,), d)) for d in (0, 2))
    assert torch.equal(first, second)


def test_it_draws_in_training_and_takes_the_mean_in_evaluation(gate, x):
    torch.manual_seed(1)
    assert not torch.equal(gate(x), gate(x))
    gate.eval()
    mean, _ = gate.posterior(x)
    assert torch.equal(gate(x), gate(x))
    assert torch.equal(gate(x), gated_by_latent(x, mean, gate.excite.weight, gate.excite.bias))


def test_draws_have_the_deviation_that_the_posterior_says(gate):
    x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0)).expand(4000, -1, -1)
    with torch.no_grad():
        torch.manual_seed(2)
        gates = (gate(x) / x)[:, 0]
        latents = torch.logit(gates) - gate.excite.bias
        _, log_variance = gate.posterior(x[:1])
    covariance = gate.excite.weight @ torch.diag(log_variance[0].exp()) @ gate.excite.weight.T
    assert torch.allclose(latents.T.cov(), covariance.detach(), atol=0.05)


def test_every_part_is_learnt(gate, x):
    loss = gate(x).square().mean() + gate.divergence(x, torch.tensor([0, 1, 2, 0, 1, 2])).mean()
    loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in gate.parameters())


def test_it_is_in_the_atlas_as_another_form():
    entry = get("variational-attention-domains")
    assert entry.function is gated_by_latent and entry.promises is None


def test_wrong_sizes_are_named():
    for sizes in ((0, 8, 3), (4, 0, 3), (4, 8, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            VariationalGate(*sizes, domains=3)
    with pytest.raises(ValueError, match="domains must be at least 1, got 0"):
        VariationalGate(4, 8, 3, domains=0)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        SqueezeGate(4, 0)


@pytest.mark.parametrize(
    ("name", "shape"),
    (("x", (2, 4)), ("latent", (1, 3)), ("matrix", (5, 3)), ("matrix", (3,)), ("bias", (1,))),
)
def test_a_gate_names_what_does_not_fit(name, shape):
    fitting = {"x": (2, 5, 4), "latent": (2, 3), "matrix": (4, 3), "bias": (4,)}
    tensors = {n: torch.zeros(s) for n, s in fitting.items()}
    with pytest.raises(ValueError, match=f"{name} (must have shape|\\(C, R\\))"):
        gated_by_latent(**{**tensors, name: torch.zeros(shape)})
    with pytest.raises(TypeError, match=f"{name} must be a torch"):
        gated_by_latent(**{**tensors, name: "x"})
