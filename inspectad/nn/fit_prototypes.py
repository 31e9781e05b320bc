"""Stage 1 of AnoMem: encoder and memories of normal prototypes learn together, by contrast between views.

Source: Jézéquel et al., AnoMem (arXiv 2211.09041): memory-augmented contrastive learning at several scales (verified in
the abstracts); labels enter the memory equations, so that anomalies never write (inferred from reviews); sub-sampled
places (recalled). Our defaults: the places of two views that show the same spot are each other's positives, all other
sampled places of the batch negatives; Adam; a first tenth without memories, which then begin at the centres of k-means,
and which at the end, when the encoder is frozen, settle on the good images (`inspectad.nn.prototypes.settle`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from inspectad.checkpoint import Checkpoints
from inspectad.errors import TrainingError
from inspectad.nn.adam_state import adam_tensors, restore_adam
from inspectad.nn.contrast import nt_xent, variance_loss
from inspectad.nn.prototypes import (
    MOST_PROTOTYPES,
    PrototypeMemory,
    cluster,
    count_of,
    effective_number,
    settle,
    targets_of,
)
from inspectad.nn.scale_encoder import ScaleEncoder
from inspectad.nn.seeded import source
from inspectad.nn.stage_views import Pair, StageViews
from inspectad.nn.views import Augmentation, read_points, shared_points
from inspectad.progress import Step, silent
from inspectad.records import ByteArray
from inspectad.training_data import spread

VARIANCE_WEIGHT: Final = 1.0
MOST_CLUSTERED_IMAGES: Final = 256
"""Good images whose vectors memories begin at the centres of, and settle on."""
_SECONDS: Final = 60.0  # between checkpoints
_SAID_EVERY: Final = 10  # steps between looks at the prototypes in use
_POINTS = 12  # what random numbers are for


@dataclass(frozen=True, slots=True)
class PrototypePlan:
    """How stage 1 learns.

    Attributes:
        batch: images in a step; points: places of each.
        prototypes: of each scale, fewer where there are few patches.
        learns_backbone: or else the projections alone learn.
        warm_up: steps without memories.
    """

    steps: int
    batch: int
    points: int
    augmentation: Augmentation
    seed: int
    learns_backbone: bool
    prototypes: int = MOST_PROTOTYPES
    learning_rate: float = 1e-3
    encoder_rate: float = 1.0
    weight_decay: float = 1e-4

    @property
    def warm_up(self) -> int:
        return max(1, self.steps // 10)

    def rate_of(self, step: int) -> float:
        """Learning rate, a half cosine down to 0."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(slots=True)
class Prototypes:
    """What stage 1 gives. Attributes: losses: last contrast and variance; in_use: effective number, of each scale."""

    encoder: ScaleEncoder
    memories: nn.ModuleList
    losses: tuple[float, float]
    in_use: tuple[float, ...]


class PrototypeTraining:
    """Stage 1 at work."""

    def __init__(
        self,
        encoder: ScaleEncoder,
        images: Sequence[ByteArray],
        good: Sequence[int],
        anomalies: Sequence[ByteArray],
        plan: PrototypePlan,
        checkpoints: Checkpoints | None = None,
        name: str = "fit",
        say: Step = silent,
    ) -> None:
        """Args:
        encoder: on the device that is to do the work; it learns.
        images: uint8 (H, W, 3), and which of them are good and teach.
        anomalies: labelled ones, which take part in the contrast and never write memory.
        checkpoints: asked for what an earlier, stopped training left under ``name``.
        """
        self._encoder, self._plan, self._say = encoder, plan, say
        self._checkpoints, self._name = checkpoints, name
        self._device = next(encoder.projections.parameters()).device
        self._good = len(good)
        self._images = [images[i] for i in good] + list(anomalies)
        self._views = StageViews(
            self._images,
            range(len(self._images)),
            encoder.maps,
            plan.augmentation,
            self._device,
            plan.seed,
            learns=plan.learns_backbone,
            steps=plan.steps,
        )
        encoder.backbone.requires_grad_(plan.learns_backbone)
        self._learn_mode()
        self._memories = nn.ModuleList()
        self._learning = [p for p in encoder.parameters() if p.requires_grad]
        self._adam = torch.optim.AdamW(self._groups(), plan.learning_rate)
        self._step, self._losses = 0, (math.nan, math.nan)
        self._in_use: tuple[float, ...] = ()

    def run(self) -> Prototypes:
        """Raises: TrainingError: a loss is no longer a number; the last checkpoint stays."""
        plan = self._plan
        self._resume()
        saved, begun_at = time.monotonic(), self._step
        while self._step < plan.steps:
            self._say("learning prototypes", self._step, plan.steps, self._detail())
            if self._step == plan.warm_up:
                self._begin_memories()
            self._learn(self._views.draw(self._step, plan.batch))
            self._step += 1
            if self._step < plan.steps and time.monotonic() - saved > _SECONDS:  # the end is saved settled
                self._save()
                saved = time.monotonic()
        if begun_at < plan.steps:
            self._settle()
            self._save()
        self._say("learning prototypes", plan.steps, plan.steps, self._detail())
        self._encoder.eval().requires_grad_(False)
        self._memories.eval().requires_grad_(False)
        return Prototypes(self._encoder, self._memories, self._losses, self._in_use)

    def _learn(self, pair: Pair) -> None:
        plan = self._plan
        for group in self._adam.param_groups:
            group["lr"] = plan.rate_of(self._step) * group["share"]
        points = shared_points(*pair.matrices, plan.points, source(plan.seed, _POINTS, self._step))
        is_good = (pair.images < self._good).repeat_interleave(plan.points).repeat(2).to(self._device)
        contrast = variance = torch.zeros((), device=self._device)
        shares = []
        for scale in range(len(self._encoder.projections)):
            read = [read_points(maps[scale], p) for maps, p in zip(pair.maps, points, strict=True)]
            vectors: Tensor = self._encoder.projections[scale](torch.cat([r.flatten(0, 1) for r in read]))
            targets = vectors
            if len(self._memories):
                memory = self._memories[scale]
                assert isinstance(memory, PrototypeMemory)
                targets = targets_of(memory, vectors, is_good)
                shares.append(memory.association(vectors[is_good].detach()).detach().mean(dim=0))
            contrast = contrast + nt_xent(vectors, targets)
            variance = variance + variance_loss(targets)
        loss = contrast + VARIANCE_WEIGHT * variance
        self._losses = self._checked(contrast, variance)
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        if self._step % _SAID_EVERY == 0 or self._step + 1 == plan.steps:
            self._in_use = tuple(effective_number(share) for share in shares)

    def _begin_memories(self) -> None:
        """Memories at the centres of the good images' vectors."""
        for scale, vectors in enumerate(self._good_vectors()):
            count = count_of(len(vectors), self._plan.prototypes)
            self._memories.append(PrototypeMemory(cluster(vectors, count, self._plan.seed + scale)))
        self._memories.to(self._device)
        self._add_memories()

    def _good_vectors(self) -> list[Tensor]:
        """Of good images as they are, as many as are needed: (M, d) of each scale."""
        chosen = spread(self._good, MOST_CLUSTERED_IMAGES)
        self._encoder.eval()
        with torch.no_grad():
            maps = [self._encoder.maps(self._pixels(i)) for i in chosen]
            found = [
                torch.cat([self._encoder.project(scale, of_image[scale]).flatten(0, 2) for of_image in maps])
                for scale in range(len(self._encoder.projections))
            ]
        self._learn_mode()
        return found

    def _pixels(self, image: int) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(self._images[image])).to(self._device)
        return pixels[None].permute(0, 3, 1, 2).float()

    def _settle(self) -> None:
        """The last word of stage 1, see `inspectad.nn.prototypes.settle`."""
        shares = []
        for scale, vectors in enumerate(self._good_vectors()):
            memory = self._memories[scale]
            assert isinstance(memory, PrototypeMemory)
            settle(memory, vectors, self._plan.seed + scale)
            with torch.no_grad():
                shares.append(memory.association(vectors).mean(dim=0))
        self._in_use = tuple(effective_number(share) for share in shares)

    def _learn_mode(self) -> None:
        self._encoder.train()
        if not self._plan.learns_backbone:
            self._encoder.backbone.eval()

    def _add_memories(self) -> None:
        """To what the optimiser moves."""
        self._adam.add_param_group({"params": list(self._memories.parameters()), "weight_decay": 0.0, "share": 1.0})

    def _groups(self) -> list[dict[str, object]]:
        return [{"params": self._learning, "weight_decay": self._plan.weight_decay, "share": self._plan.encoder_rate}]

    def _checked(self, contrast: Tensor, variance: Tensor) -> tuple[float, float]:
        found = {"contrastive loss": contrast.item(), "variance loss": variance.item()}
        broken = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
        if broken:
            raise TrainingError(
                f"stage 1, step {self._step + 1}: the {' and the '.join(broken)}; training came apart. Train again "
                "with another --seed; if it happens again, check the file of --backbone-weights, or use --method "
                "memory_bank"
            )
        return contrast.item(), variance.item()

    def _detail(self) -> str:
        """For people, while it goes."""
        if math.isnan(self._losses[0]):
            return ""
        told = f"contrast {self._losses[0]:.3f}, variance {self._losses[1]:.3f}"
        used = ", ".join(f"{n:.0f}" for n in self._in_use)
        return f"{told}, prototypes in use {used}" if used else told

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        tensors = {"step": torch.tensor(self._step), "losses": torch.tensor(self._losses, dtype=torch.float64)}
        tensors["in_use"] = torch.tensor(self._in_use, dtype=torch.float64)
        for prefix, network in self._networks().items():
            tensors |= {f"{prefix}{key}": value for key, value in network.state_dict().items()}
        if self._step < self._plan.steps:
            tensors |= adam_tensors(self._adam, "adam.")
        self._checkpoints.save(self._name, tensors)

    def _resume(self) -> None:
        tensors = self._checkpoints.load(self._name) if self._checkpoints is not None else None
        if tensors is None:
            return
        self._step = int(tensors["step"])
        self._losses = (float(tensors["losses"][0]), float(tensors["losses"][1]))
        self._in_use = tuple(tensors["in_use"].tolist())
        stored = {k: v for k, v in tensors.items() if k.startswith("memory.")}
        for scale in range(len(stored)):
            self._memories.append(PrototypeMemory(stored[f"memory.{scale}.prototypes"]))
        if stored:
            self._memories.to(self._device)
            self._add_memories()
        for prefix, network in self._networks().items():
            network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        restore_adam(self._adam, tensors, "adam.")

    def _networks(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps; a backbone that does not learn is known without it."""
        kept: dict[str, nn.Module] = {"projections.": self._encoder.projections, "memory.": self._memories}
        return kept | ({"backbone.": self._encoder.backbone} if self._plan.learns_backbone else {})
