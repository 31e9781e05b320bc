"""What a method returns of one training."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained network, and what there is to say of it.

    Attributes:
        module: forward(images: uint8 (B, H, W, 3)) -> (score (B,), anomaly_map (B, H, W)).
        notes: the method's own numbers and choices, which the manifest keeps and ``info`` shows.
    """

    module: nn.Module
    notes: dict[str, str]
