"""Batch normalisation after training: its statistics measured once more, of what images of a line are like."""

from collections.abc import Iterable

from torch import Tensor, nn


def settle(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the batch statistics of a network to the mean over these batches, and leave it in evaluation mode.

    While training, the running ones lag behind the weights, and take in whatever else the network was shown.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    for batch in batches:
        network(batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
