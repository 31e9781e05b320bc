"""What a method returns of one training."""

from dataclasses import dataclass

from torch import nn

from inspectad.records import ByteArray


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained network, and what there is to say of it.

    Attributes:
        module: forward(images: uint8 (B, H, W, 3)) -> (score (B,), anomaly_map (B, H, W)).
        notes: the method's own numbers and choices, which the manifest keeps and ``info`` shows.
        warnings: what the user should know of this training, a sentence each.
        samples: what a generative method makes of noise or of training images, as a picture for people, uint8
            (h, w, 3); None for others.
    """

    module: nn.Module
    notes: dict[str, str]
    warnings: tuple[str, ...] = ()
    samples: ByteArray | None = None
