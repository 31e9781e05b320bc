"""How much IE-Net's code tells of the latent map that it was made from: an estimate of mutual information.

Source: Liu et al., "Unsupervised Two-stage Anomaly Detection" (arXiv 2103.11671) names local and global terms and their
weights; composed as in Deep InfoMax (Hjelm et al., ICLR 2019), with the divergence of a variational code (Kingma &
Welling, ICLR 2014).
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inspectad.nn.inception import CODE, LATENT

_WIDTH: Final = 128


class PairDiscriminator(nn.Module):
    """Whether a code and a vector of the latent map are of the same image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(CODE + LATENT, _WIDTH), nn.ReLU()),
            *(nn.Linear(_WIDTH, _WIDTH), nn.ReLU()),
            nn.Linear(_WIDTH, 1),
        )

    def forward(self, code: Tensor, vectors: Tensor) -> Tensor:
        """Args: code (B, 128), vectors (B, P, 512). Returns: logits (B, P) of being of one image."""
        pairs = torch.cat([code[:, None].expand(-1, vectors.shape[1], -1), vectors], dim=2)
        logits: Tensor = self.layers(pairs)
        return logits.squeeze(2)


def pair_loss(same: Tensor, other: Tensor) -> Tensor:
    """-E[log T(v, F) + log(1 - T(v, F'))], of logits; 2 ln 2 where T is 1/2 throughout."""
    return (F.softplus(-same.float()) + F.softplus(other.float())).mean()


def information_losses(
    local: PairDiscriminator, whole: PairDiscriminator, code: Tensor, reduced: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each place of the latent map, and of the map as a whole, against those of another image of the batch.

    Args: code (B, 128), drawn; reduced (B, 512, h, w), the latent map of `ImpressionNet.describe`; at least 2 images.
    """
    places = reduced.flatten(2).transpose(1, 2)
    mean = places.mean(dim=1, keepdim=True)
    return (
        pair_loss(local(code, places), local(code, places.roll(1, 0))),
        pair_loss(whole(code, mean), whole(code, mean.roll(1, 0))),
    )


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over the code, mean of the images; 0 for mean 0 and variance 1.

    Args: (B, 128) each.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
