"""How the good images tell in which ways parts lie: which copies of them are as good as another good image.

For each good image, left out in turn: its patches look for their nearest among those of the other good images, and
among those of the others' copies. Where parts do lie like the copies, these are the nearer ones at least as often;
where they do not, hardly ever. Only the patches that are farthest from the other good images count: background and what
all images share is near in every copy, and says nothing.

Measured with 2 to 16 good images, three draws, copies turned by eighths: parts of fixed pose reach 0 to .36, a round
bottle .40 to .88, cookies .75 to .95, and pills and cookies turned to any angle .53 to .98.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from inspectad.nn.patches import nearest_distance, soft_normalise
from inspectad.pose import MIRRORS, Pose, any_angle, turn
from inspectad.records import ByteArray

MOST_IMAGES: Final = 8  # are looked at: enough to tell, and some seconds
ANGLES: Final = (45.0, 135.0, 225.0, 315.0)
NEEDED: Final = 0.5
"""Share of the patches that must be nearer to a copy."""
MOST_STRETCH: Final = 1.5
"""Longer images are not turned: a quarter turn of them would be mostly what reflection makes up."""
_HARDEST = 0.2  # share of the patches that count
_SOFTNESS = 0.5  # as of the flagship's first levels
_TURNED = "turned by eighths"

Copy = Callable[[ByteArray], ByteArray]
Maps = list[Tensor]
"""Patch vectors of one image: (P, D) for each map of the backbone that is used."""


@dataclass(frozen=True, slots=True)
class PoseEvidence:
    """For each kind of copy, the share of the telling patches that are nearer to a copy than to any other good image,
    median over the images left out.

    Attributes:
        mirrors: by keys of `MIRRORS`, one copy of each other image.
        turned: by `ANGLES`, four copies of each other image; 0 for long images, see `MOST_STRETCH`. Eighths, since
            grain and edges look alike in quarters.
        images: how many good images were left out in turn.
    """

    mirrors: dict[str, float]
    turned: float
    images: int

    def pose(self, images: int) -> Pose:
        """What may be assumed of most parts. Args: images: number of good images that training has."""
        if self.turned >= NEEDED:
            return any_angle(images)
        found = tuple(name for name, share in self.mirrors.items() if share >= NEEDED)
        return Pose(found if len(found) < 2 else tuple(MIRRORS))  # any two of them make the third

    def __str__(self) -> str:
        found = ", ".join(f"{name} {share:.2f}" for name, share in {**self.mirrors, _TURNED: self.turned}.items())
        return f"patches nearer to a copy than to another good image, of {self.images} left out: {found}"


def examine_pose(
    images: Sequence[ByteArray], backbone: nn.Module, device: str, on_image: Callable[[int, int], None]
) -> PoseEvidence:
    """Compare copies of the good images with the good images.

    Args:
        images: at least two, uint8 (H, W, 3) of one shape; a few spread over all of them are looked at.
        backbone: as in ``inspectad.nn.backbone``, on ``device``.
        on_image: told (images done, images in all).
    """
    count = min(len(images), MOST_IMAGES)
    kinds: dict[str, list[Copy]] = {name: [mirror] for name, mirror in MIRRORS.items()}
    height, width = images[0].shape[:2]
    if max(height, width) <= MOST_STRETCH * min(height, width):
        kinds[_TURNED] = [partial(turn, degrees=angle) for angle in ANGLES]
    originals: list[Maps] = []
    copied: list[dict[str, list[Maps]]] = []
    for i in range(count):
        image = images[i * len(images) // count]
        originals.append(_vectors(image, backbone, device))
        copied.append({kind: [_vectors(copy(image), backbone, device) for copy in kinds[kind]] for kind in kinds})
        on_image(i + 1, count)
    shares: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(count):
        others = [j for j in range(count) if j != i]
        theirs = {kind: [maps for j in others for maps in copied[j][kind]] for kind in kinds}
        for kind, share in _shares(originals[i], [originals[j] for j in others], theirs).items():
            shares[kind].append(share)
    medians = {kind: float(np.median(values)) for kind, values in shares.items()}
    return PoseEvidence({name: medians[name] for name in MIRRORS}, medians.get(_TURNED, 0.0), count)


def _vectors(image: ByteArray, backbone: nn.Module, device: str) -> Maps:
    """Of every map of the backbone but the finest, which sees too little to tell how a part lies."""
    with torch.inference_mode():
        x = torch.from_numpy(np.ascontiguousarray(image))[None].to(device)
        return [m.flatten(2)[0].T for m in backbone(x.permute(0, 3, 1, 2).float())[1:]]


def _shares(image: Maps, others: Sequence[Maps], copied: dict[str, list[Maps]]) -> dict[str, float]:
    """Of the patches farthest from the others, those that are nearer to a copy of each kind; mean over the maps."""
    found: dict[str, list[float]] = {kind: [] for kind in copied}
    for level, vectors in enumerate(image):
        good = torch.cat([maps[level] for maps in others])
        offset = _SOFTNESS * good.square().sum(dim=1).sqrt().mean()
        patches = _normalised(vectors, offset)
        to_others = nearest_distance(patches, _normalised(good, offset))
        hard = to_others >= to_others.quantile(1 - _HARDEST)
        for kind, copies in copied.items():
            bank = _normalised(torch.cat([maps[level] for maps in copies]), offset)
            found[kind].append(float((nearest_distance(patches[hard], bank) < to_others[hard]).float().mean()))
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def _normalised(vectors: Tensor, offset: Tensor) -> Tensor:
    return soft_normalise(vectors[:, :, None, None], offset).flatten(0, 2)
