"""AnoMem: prototypes of good patches at three scales, learnt by contrast, and deviations from them.

Source: Jézéquel, Vu, Beaudet & Histace, "AnoMem" (arXiv 2211.09041; extended in IEEE TIP 35:2802-2815, 2026). Neither
code nor the body of the paper could be read: what is verified, in the abstracts, is the two stages, the memories of
normal prototypes at several scales, the deviation maps, and one framework with and without labelled anomalies; each
module says of the rest what is inferred, recalled or our default. No published figure is quoted: no table was verified.

Two starts, the same code:

- ``pretrained``, for tens of images: the embedded backbone stays as it is, projections and memories learn. Learning
  the projections fast made it worse than not at all, see `PRETRAINED_RATE`.
- ``scratch``, as in the paper: a ResNet-18 learns from nothing; for a thousand images and a GPU.

Stage 2 freezes all that, and takes the length of the deviation, or the one-class head where that tells more of the
held-out good images from copies of them with a patch pasted in. Labelled defects never write memory. The few-anomaly
detector is the head that the memory bank has too, a balanced logistic regression (`inspectad.nn.known_defects`), whose
weight is chosen on left-out training images and is 0 where it tells no more apart.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from inspectad.checkpoint import fit_name
from inspectad.methods.set_apart import set_apart, shifted
from inspectad.metrics import auroc
from inspectad.nn.backbone import build_backbone, load_backbone
from inspectad.nn.defect_head import DefectHead, describe
from inspectad.nn.deviation_maps import DeviationMaps
from inspectad.nn.fit_prototypes import PrototypePlan, Prototypes, PrototypeTraining
from inspectad.nn.fitted import Fitted
from inspectad.nn.known_defects import MIN_GOOD, TOO_FEW, Described, learn
from inspectad.nn.one_class_head import MOST_IMAGES, OneClassHead, fit_one_class
from inspectad.nn.prototypes import MOST_PROTOTYPES, PrototypeMemory, spread_of
from inspectad.nn.scale_encoder import STRIDES, ScaleEncoder
from inspectad.nn.settings import PRETRAINED, SCRATCH, TrainSettings
from inspectad.nn.views import augmentation_named
from inspectad.progress import Step, silent
from inspectad.pseudo_defects import paste_patch
from inspectad.records import ByteArray
from inspectad.training_data import DefectImages, TrainingImages, spread

EPOCH_STEPS: Final = 20
PRETRAINED_EPOCHS: Final = 5
SCRATCH_EPOCHS: Final = 5
"""`EPOCH_STEPS` steps each. From nothing, 40 epochs were worse than 5 on four classes of FashionMNIST (1,000 images, 3
draws each: mean image AUROC .960 and .969), and as good on two of CIFAR-10 (.671 and .665); before memories settled."""
PRETRAINED_RATE: Final = (3e-4, 0.03)
"""Learning rate of the memories, and by how much slower the projections learn. At 1e-3 and .1, image AUROC on pill and
magnetic tile (16 images, one draw, 100 steps) fell from .91 and .75 without training to .82 and .65."""
TOP_SHARES: Final = {PRETRAINED: 0.01, SCRATCH: 1.0}
"""Of the map's places, those whose mean is the image score: defects of parts are small; the whole of it is recalled."""
MAX_FOLDS: Final = 3
"""Calibration trains so many times again, each as long as the model itself."""
IN_USE: Final = 0.25
"""Of a memory's prototypes: with fewer in use (effective number) it has collapsed."""
ALIKE: Final = 1e-3
"""And so it has when they spread by less (`inspectad.nn.prototypes.spread_of`): then all answer alike."""
HEAD_IMAGES: Final = 128
_PASTED: Final = 4  # copies with a patch of each held-out image
_BETTER: Final = 0.01  # image AUROC that the one-class head has to gain


class AnoMemTrainer:
    """Trains encoder, memories and heads for each subset of the images that it is given."""

    def __init__(self, good: TrainingImages, defects: DefectImages, settings: TrainSettings) -> None:
        self._good, self._defects, self._settings = good, defects, settings
        self._is_scratch = settings.init == SCRATCH
        self._backbone: nn.Module | None = None
        if not self._is_scratch:
            self._backbone = load_backbone(settings.backbone, settings.backbone_weights, deep=True)[0]
            self._backbone.to(settings.device)
        self._plan = self._planned()

    def fit(self, good: Sequence[int], defects: Sequence[int], say: Step = silent) -> Fitted:
        """A detector of these images; the same images, settings and seed give the same one on the same machine.

        A stage 1 that was stopped goes on at its last checkpoint, if ``settings.checkpoints`` has one.

        Raises: TrainingError: a loss is no longer a number.
        """
        watched = set_apart(good)  # for the units and the choice of the head
        taught = [i for i in good if i not in watched]
        # Patches of an industrial part's defect are mostly good, so only a whole-image anomaly is contrasted.
        anomalies = [self._defects[i] for i in defects] if self._is_scratch else []
        name = fit_name(taught, defects)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            learnt = PrototypeTraining(
                self._encoder(), self._good, taught, anomalies, self._plan, self._settings.checkpoints, name, say
            ).run()
        say("choosing the detector", 0, 1)
        module = DeviationMaps(learnt.encoder, learnt.memories, TOP_SHARES[self._settings.init])
        module.to(self._settings.device).eval().requires_grad_(False)
        unseen = [self._good[i] for i in watched] or shifted([self._good[i] for i in taught], self._settings.seed)
        with torch.inference_mode():
            held = [self._maps(module, image) for image in unseen]
            module.standardise(held)
        notes = self._notes(learnt) | self._choose_one_class(module, taught, unseen, held)
        notes |= self._learn_defects(module, good, defects)
        return Fitted(module.requires_grad_(False).eval(), notes, self._warnings(learnt, len(good)))

    def _planned(self) -> PrototypePlan:
        settings = self._settings
        epochs = SCRATCH_EPOCHS if self._is_scratch else PRETRAINED_EPOCHS
        rate, slower = (1e-3, 1.0) if self._is_scratch else PRETRAINED_RATE
        return PrototypePlan(
            steps=(settings.epochs or epochs) * EPOCH_STEPS,
            batch=64 if self._is_scratch else 16,
            points=16 if self._is_scratch else 32,
            augmentation=augmentation_named(settings.views, settings.pose),
            seed=settings.seed,
            learns_backbone=self._is_scratch,
            learning_rate=rate,
            encoder_rate=slower,
        )

    def _encoder(self) -> ScaleEncoder:
        """Random projections, which depend on the seed alone, on the pretrained backbone or on a random one."""
        settings = self._settings
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(settings.seed)
            backbone = self._backbone or build_backbone(settings.backbone, deep=True)
            device = next(backbone.parameters()).device
            channels = [m.shape[1] for m in backbone.eval()(torch.zeros(1, 3, 64, 64, device=device))]
            encoder = ScaleEncoder(backbone, settings.backbone, channels)
        return encoder.to(settings.device)

    def _maps(self, module: DeviationMaps, image: ByteArray) -> list[Tensor]:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self._settings.device)
        return module.encoder.maps(pixels[None].permute(0, 3, 1, 2).float())

    def _choose_one_class(
        self, module: DeviationMaps, taught: Sequence[int], unseen: Sequence[ByteArray], held: list[list[Tensor]]
    ) -> dict[str, str]:
        """Put the one-class heads in where they tell more apart; what was found, for people."""
        rng = np.random.default_rng((self._settings.seed, len(unseen)))
        chosen = spread(len(unseen), MOST_IMAGES)
        pasted = [paste_patch(unseen[i], self._good[taught[0]], rng) for i in chosen for _ in range(_PASTED)]
        with torch.inference_mode():
            seen = [
                module.deviations(self._maps(module, self._good[taught[i]]))[1]
                for i in spread(len(taught), MOST_IMAGES)
            ]
            bad = [self._maps(module, image) for image in pasted]
        maps = [torch.cat(scale).clone() for scale in zip(*seen, strict=True)]
        heads = fit_one_class(maps, self._settings.seed)
        found, units = [], module.units.clone()
        with torch.inference_mode():
            for candidate in (None, heads):
                module.one_class = candidate
                module.standardise(held)
                scores = [np.array([float(module.examine(m).score) for m in side]) for side in (held, bad)]
                found.append(auroc(*scores))
        if found[1] <= found[0] + _BETTER:
            module.one_class = None
            module.units.copy_(units)
        name = "length of the deviation" if module.one_class is None else "one-class head"
        return {
            "detector": f"{name}; of {len(held)} held-out good images and copies with a patch pasted in, the length "
            f"tells apart {found[0]:.1%}, the head {found[1]:.1%}"
        }

    def _learn_defects(self, module: DeviationMaps, good: Sequence[int], defects: Sequence[int]) -> dict[str, str]:
        """Put in the head of these defects, where it helps; what was found, for people."""
        if not defects:
            return {}
        if len(self._good) <= MIN_GOOD:
            return {"weight of the defects": f"0.00: {TOO_FEW}"}
        sides = []
        with torch.inference_mode():
            for images, chosen in ((self._good, good), (self._defects, defects)):
                found = [
                    module.examine(self._maps(module, images[chosen[i]])) for i in spread(len(chosen), HEAD_IMAGES)
                ]
                scores = np.array([math.log(float(evidence.score[0])) for evidence in found])
                rows = np.stack([describe(evidence)[0].cpu().numpy() for evidence in found])
                sides.append(Described(scores, rows.astype(np.float64)))
        learnt = learn(sides[0], sides[1], len(STRIDES), [], [None] * len(sides[1].log_scores))
        module.head = None if learnt.head is None else learnt.head.to(self._settings.device)
        return {"weight of the defects": f"{learnt.weight:.2f}: {learnt.why}"}

    def _notes(self, learnt: Prototypes) -> dict[str, str]:
        """How the model was trained, for people."""
        plan, sizes = self._plan, [len(memory.prototypes) for memory in _memories(learnt.memories)]
        return {
            "start": f"{self._settings.init}; " + ("all layers learn" if self._is_scratch else "projections learn"),
            "scales": ", ".join(f"stride {stride}" for stride in STRIDES),
            "steps": f"{plan.steps}, {plan.batch} images and {plan.points} places of each at most",
            "views": self._settings.views,
            "prototypes": ", ".join(map(str, sizes)),
            "prototypes in use": ", ".join(f"{n:.0f}" for n in learnt.in_use),
            "final losses": f"contrast {learnt.losses[0]:.3f}, variance {learnt.losses[1]:.3f}",
            "patches that count": f"{TOP_SHARES[self._settings.init]:.0%} of the map",
        }

    def _warnings(self, learnt: Prototypes, good: int) -> tuple[str, ...]:
        if good < len(self._good):  # of the model itself alone
            return ()
        warnings = []
        sizes = [len(memory.prototypes) for memory in _memories(learnt.memories)]
        small = [f"{n} at stride {stride}" for n, stride in zip(sizes, STRIDES, strict=True) if n < MOST_PROTOTYPES]
        if small:
            warnings.append(
                f"the good images have too few patches for {MOST_PROTOTYPES} prototypes: the memory holds "
                f"{', '.join(small)}; more good images, or a larger --size, would fill it"
            )
        collapsed = [
            f"{used:.1f} of {len(memory.prototypes)}, spread by {spread_of(memory.prototypes):.3f}, at stride {stride}"
            for used, memory, stride in zip(learnt.in_use, _memories(learnt.memories), STRIDES, strict=True)
            if len(memory.prototypes) > 1
            and (used < IN_USE * len(memory.prototypes) or spread_of(memory.prototypes) < ALIKE)
        ]
        if collapsed:
            warnings.append(
                f"the memory has collapsed: prototypes in use {', '.join(collapsed)}. Good images that all look alike, "
                "or even, do that; otherwise train again with another --seed, or use --method memory_bank"
            )
        return tuple(warnings)


def _memories(memories: nn.ModuleList) -> list[PrototypeMemory]:
    return [memory for memory in memories if isinstance(memory, PrototypeMemory)]


def restore_anomem(tensors: dict[str, Tensor], settings: TrainSettings) -> DeviationMaps:
    """The module that ``fit`` returned, from its state dict."""
    backbone = build_backbone(settings.backbone, deep=True)
    channels = [m.shape[1] for m in backbone.eval()(torch.zeros(1, 3, 64, 64))]
    encoder = ScaleEncoder(backbone, settings.backbone, channels)
    memories = nn.ModuleList(PrototypeMemory(tensors[f"memories.{s}.prototypes"]) for s in range(len(STRIDES)))
    one_class = nn.ModuleList(OneClassHead() for _ in STRIDES) if "one_class.0.centre" in tensors else None
    head = None
    if "head.weight" in tensors:
        head = DefectHead(len(tensors["head.patch_weight"]) // 2, len(STRIDES))
    module = DeviationMaps(encoder, memories, float(tensors["top_share"]), one_class, head)
    module.load_state_dict(tensors)
    return module.requires_grad_(False).eval()
