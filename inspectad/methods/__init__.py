"""The detection methods, by the name that ``--method`` takes.

A method is a trainer: made once with the training images and the settings, it returns a ``torch.nn.Module`` for any
subset of them, whose ``forward(images: uint8 (B, H, W, 3)) -> (score (B,), anomaly_map (B, H, W))``,
higher meaning more anomalous. Calibration, export, parity, scan and evaluation know that module and no method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from inspectad.calibration import BANK_EXPONENT
from inspectad.manifest import Calibration
from inspectad.methods.anomem import MAX_FOLDS as ANOMEM_MAX_FOLDS
from inspectad.methods.anomem import AnoMemTrainer, restore_anomem
from inspectad.methods.devnet import MAX_FOLDS, DevNetTrainer, explain_devnet, restore_devnet
from inspectad.methods.htdg import MAX_FOLDS as HTDG_MAX_FOLDS
from inspectad.methods.htdg import HTDGTrainer, restore_htdg
from inspectad.methods.memory_bank import MemoryBankTrainer, restore_memory_bank
from inspectad.methods.utad import CPU_SIDE, SIDE, SIDE_MULTIPLE, UTADTrainer, restore_utad
from inspectad.methods.utad import MAX_FOLDS as UTAD_MAX_FOLDS
from inspectad.nn.fitted import Fitted
from inspectad.nn.settings import TrainSettings
from inspectad.nn.two_stage_pictures import explain_two_stage
from inspectad.progress import Step, silent
from inspectad.records import ByteArray
from inspectad.training_data import DefectImages, TrainingImages


class Trainer(Protocol):
    """One method at work on one set of training images."""

    def fit(self, good: Sequence[int], defects: Sequence[int], say: Step = silent) -> Fitted:
        """Train on these of the good images and of the defects (indices), and on nothing else."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a method is trained, and how its network is made again from a model's weights.

    Attributes:
        trainer: (good images, defect images, settings) to a trainer.
        restore: (tensors of ``weights.safetensors``, settings) to the module that ``fit`` returned.
        max_folds: how many times calibration may train again to score images that the model has not seen, if it can.
        exponent: unseen good images' scores fall like (number of images learnt from) to the power of minus this.
        learns_masks: it can use masks of the defects.
        needs_defects: there is no model without a defect image.
        has_epochs: it trains a network, for a number of epochs that the user may choose.
        has_steps: it trains scale by scale, or stage by stage, for a number of steps each that the user may choose.
        tells_transformations: that is what it learns, and the user may choose which.
        has_samples: `Fitted.samples` is a picture of what it generates.
        square_side: its input is a square of this side in pixels, whatever the images are; None: chosen from images.
        cpu_side: the same where it trains without a GPU, and the user may choose another side; None: no other side.
        has_starts: it can start from a pretrained network or from nothing, and contrasts random views.
        side_multiple: of its input, in pixels; its coarsest map has a place for each.
        has_backbone: it stands on a pretrained backbone.
        asks_pose: it makes use of how parts lie.
        learns_defects: defects change its model, so that one is scored by a model without it.
        has_int8: its graph can be computed in 8 bits; not where it compares what the backbone sees of two pictures, of
            which only one would be.
        explain: (module, image at its input size, source image, calibration) to the picture that ``inspectad explain``
            writes; None where the anomaly map is all there is to see. Images are uint8 (H, W, 3), RGB.
    """

    trainer: Callable[[TrainingImages, DefectImages, TrainSettings], Trainer]
    restore: Callable[[dict[str, Tensor], TrainSettings], nn.Module]
    max_folds: int = 16
    exponent: float = 0.0
    learns_masks: bool = False
    needs_defects: bool = False
    has_epochs: bool = False
    has_steps: bool = False
    tells_transformations: bool = False
    has_samples: bool = False
    square_side: int | None = None
    cpu_side: int | None = None
    has_starts: bool = False
    side_multiple: int = 1
    has_backbone: bool = True
    asks_pose: bool = True
    learns_defects: bool = True
    has_int8: bool = True
    explain: Callable[[nn.Module, ByteArray, ByteArray, Calibration], ByteArray] | None = None


METHODS: dict[str, Method] = {
    "memory_bank": Method(MemoryBankTrainer, restore_memory_bank, exponent=BANK_EXPONENT, learns_masks=True),
    "devnet": Method(
        DevNetTrainer,
        restore_devnet,
        max_folds=MAX_FOLDS,
        needs_defects=True,
        has_epochs=True,
        explain=explain_devnet,
    ),
    "htdg": Method(
        HTDGTrainer,
        restore_htdg,
        max_folds=HTDG_MAX_FOLDS,
        has_steps=True,
        tells_transformations=True,
        has_samples=True,
        square_side=64,
        has_backbone=False,
        asks_pose=False,
        learns_defects=False,
    ),
    "anomem": Method(
        AnoMemTrainer,
        restore_anomem,
        max_folds=ANOMEM_MAX_FOLDS,
        has_epochs=True,
        has_starts=True,
        side_multiple=32,
    ),
    "utad": Method(
        UTADTrainer,
        restore_utad,
        max_folds=UTAD_MAX_FOLDS,
        has_steps=True,
        has_samples=True,
        square_side=SIDE,
        cpu_side=CPU_SIDE,
        side_multiple=SIDE_MULTIPLE,
        learns_defects=False,
        has_int8=False,
        explain=explain_two_stage,
    ),
}
