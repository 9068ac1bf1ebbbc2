"""Gates over channels, one number a channel: computed from the sequence, or drawn from it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.weight.latent_gate import gated_by_latent


class SqueezeGate(nn.Module):
    """x * sigmoid(W_2 relu(W_1 mean(x))): each channel is let through as far as the mean asks.

    Shapes: (batch, T, channels) -> (batch, T, channels). Source: Hu et al. (2018).
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        check_count("channels", channels, least=1)
        check_count("hidden", hidden, least=1)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def gates(self, x: Float[Tensor, "batch T C"]) -> Float[Tensor, "batch C"]:
        """The gates in (0, 1), one a channel."""
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean(-2)))))

    def forward(self, x: Float[Tensor, "batch T C"]) -> Float[Tensor, "batch T C"]:
        """x with its channels gated."""
        return x * self.gates(x)[:, None]


class VariationalGate(nn.Module):
    r"""x * sigmoid(W z) with z drawn from N(mu(x), sigma(x)^2), held near a prior of its domain.

    .. math:: \mathrm{KL}(q \,\|\, N(m_d, 1)) = \tfrac12 \sum_r \bigl(\sigma_r^2
              + (\mu_r - m_{d,r})^2 - 1 - \log \sigma_r^2\bigr)

    mu and log sigma^2 are linear in relu(W_1 mean(x)); the prior means m_d are learnt. In training
    z is drawn, in evaluation z = mu. The gate is not told the domain, only its loss, `divergence`,
    is. With `domains=1` all domains share one prior.
    Shapes: (batch, T, channels) -> (batch, T, channels).
    Source: Chen et al. (2021) for the idea; the equations are ours (their code is not published).
    """

    def __init__(self, channels: int, hidden: int, latent: int, *, domains: int):
        super().__init__()
        sizes = {"channels": channels, "hidden": hidden, "latent": latent, "domains": domains}
        for name, number in sizes.items():
            check_count(name, number, least=1)
        self.squeeze = nn.Linear(channels, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.excite = nn.Linear(latent, channels)
        self.prior = nn.Parameter(torch.randn(domains, latent))

    def posterior(
        self, x: Float[Tensor, "batch T C"]
    ) -> tuple[Float[Tensor, "batch R"], Float[Tensor, "batch R"]]:
        """mu(x) and log sigma(x)^2."""
        hidden = torch.relu(self.squeeze(x.mean(-2)))
        return self.mean(hidden), self.log_variance(hidden)

    def forward(self, x: Float[Tensor, "batch T C"]) -> Float[Tensor, "batch T C"]:
        """x with its channels gated."""
        mean, log_variance = self.posterior(x)
        if self.training:
            mean = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        return gated_by_latent(x, mean, self.excite.weight, self.excite.bias)

    def divergence(
        self, x: Float[Tensor, "batch T C"], domain: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The KL divergence of q(z | x) from the prior of each example's domain."""
        mean, log_variance = self.posterior(x)
        prior = self.prior[domain] if len(self.prior) > 1 else self.prior
        terms = log_variance.exp() + (mean - prior) ** 2 - 1 - log_variance
        return terms.sum(-1) / 2
