"""Nearest neighbour in memory banks of normal patch features: the default method.

After PatchCore (Roth et al., CVPR 2022): patch features of a frozen backbone, thinned to a k-centre coreset; a patch is
as anomalous as its distance to the nearest one kept. Different here, each measured (README, "What was measured"):

- several kinds of patch (`inspectad.nn.levels`), from fine detail to wide context, each with a bank of its own at its
  own stride, instead of one long vector: what one kind cannot tell apart does not drown what another sees;
- features are normalised softly, so that no patch of high contrast dominates;
- the widest kind is relative to the image's own mean, so that another exposure of the same part is no anomaly;
- where the good images show that parts lie mirrored or at any angle, copies of them in those poses teach too;
- the image score is the mean of the top 1 % of the map instead of a reweighted maximum;
- of known defects, a head learns what the banks cannot explain (`inspectad.nn.defect_head`).

Random, and seeded, are the projection that the coreset is chosen in and, where the images hold more patches than
`CANDIDATES`, which of them are considered. Nothing assumes that normal images are of one kind.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inspectad.nn.backbone import BACKBONES, load_backbone
from inspectad.nn.coreset import greedy_coreset, project
from inspectad.nn.defect_head import DefectHead, Evidence, describe, patch_rows, weigh_top
from inspectad.nn.fitted import Fitted
from inspectad.nn.known_defects import MIN_GOOD, TOO_FEW, Described, Learnt, learn
from inspectad.nn.known_masks import Places, choose_defect, choose_good
from inspectad.nn.levels import Level, LevelBank, levels_of, patch_vectors
from inspectad.nn.patches import length, soft_normalise
from inspectad.nn.settings import TrainSettings
from inspectad.nn.smoothing import GaussianBlur, enlarge
from inspectad.pose import copies
from inspectad.progress import Step, silent
from inspectad.records import ByteArray, FloatArray
from inspectad.training_data import DefectImages, TrainingImages, spread

CANDIDATES = 32768  # patches that a coreset is chosen from, shared evenly: 55 MB (Lite0) however many images there are
PROJECTED = 32  # dimensions that the coreset is chosen in
TOP_SHARE = 0.01  # share of the map whose mean is the image score
HEAD_GOOD = 128  # good images, at most, that the head for defects learns from; all of 1,131 were no better
HEAD_DEFECTS = 128  # defects, at most: its weight is checked by leaving out each, which takes time
_MAP_BYTES = 512 * 2**20  # maps of the backbone kept in memory while training
SMOOTHING_PX = 4.0  # sigma of the Gaussian on the map, in input pixels


class MemoryBank(nn.Module):
    """The detector: features, nearest neighbours, smoothing, score and what is known of defects, in one graph."""

    def __init__(self, backbone: nn.Module, banks: Sequence[LevelBank], head: DefectHead | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.banks = nn.ModuleList(banks)
        self.weights = [bank.level.weight / sum(b.level.weight for b in banks) for bank in banks]
        self.blur = GaussianBlur(SMOOTHING_PX / 8)  # the map is at stride 8
        self.head = head

    @property
    def has_ties(self) -> bool:
        """Whether the direction to the nearest good patch matters, and not its distance alone."""
        return self.head is not None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Args: images uint8 (B, H, W, 3). Returns: score (B,), anomaly_map (B, H, W), float32, one unit."""
        evidence = self.examine(self.backbone(images.permute(0, 3, 1, 2).float()))
        score, coarse = evidence.score, evidence.anomaly_map
        if self.head is not None:
            of_score, of_map = self.head(evidence, self.blur)
            score, coarse = score * of_score, coarse * of_map
        return score, enlarge(coarse, (images.shape[1], images.shape[2])).squeeze(1)

    def examine(self, maps: Sequence[Tensor]) -> Evidence:
        """What the banks find, whatever is known of defects. Args: maps of the backbone."""
        height, width = maps[0].shape[-2:]
        found = [bank(maps) for bank in self.banks]
        distances = [
            weight * enlarge(length(residuals).unsqueeze(1), (height, width))
            for weight, (_, residuals) in zip(self.weights, found, strict=True)
        ]
        coarse = self.blur(torch.stack(distances).sum(dim=0))
        count = max(1, round(TOP_SHARE * height * width))
        highest = coarse.flatten(1).topk(min(2 * count, height * width), dim=1).values
        patches, residuals = zip(*found, strict=True)
        return Evidence(patches, residuals, coarse, highest[:, :count].mean(dim=1), weigh_top(coarse, highest))


class MemoryBankTrainer:
    """Fits memory banks to subsets of one set of images; each image, and each copy of it, passes the backbone once.

    Defects never enter the banks. What is unexplained in them is learnt by a head, see `inspectad.nn.known_defects`.
    """

    def __init__(self, good: TrainingImages, defects: DefectImages, settings: TrainSettings) -> None:
        self._settings = settings
        self._images = good
        self._are_tiles = getattr(good, "tiling", None) is not None  # any sequence of images will do
        self._defects = defects
        self._levels = levels_of(settings.backbone)
        network, _ = load_backbone(settings.backbone, settings.backbone_weights)
        self._backbone = network.to(settings.device)
        self._patches: dict[int, list[Tensor]] = {}
        self._maps: dict[tuple[bool, int], list[Tensor]] = {}
        self._covered: dict[int, npt.NDArray[np.float64] | None] = {}

    def fit(self, good: Sequence[int], defects: Sequence[int], say: Step = silent) -> Fitted:  # noqa: ARG002
        """Memory banks of these good images and a head of these defects; the same images, settings and seed give the
        same."""
        patches = [torch.cat(parts) for parts in zip(*(self._patches_of(i) for i in good), strict=True)]
        owners = [np.repeat(good, [len(self._patches_of(i)[n]) for i in good]) for n in range(len(self._levels))]
        fitted = [self._bank(*given) for given in zip(self._levels, patches, owners, strict=True)]
        module = self._module([bank for bank, _ in fitted])
        notes = {f"level {i}": str(level) for i, level in enumerate(self._levels, 1)}
        if defects and len(self._images) <= MIN_GOOD:
            notes["weight of the defects"] = f"0.00: {TOO_FEW}"
        elif defects:
            learnt = self._learn(module, [owner for _, owner in fitted], good, defects)
            module.head = learnt.head
            notes["weight of the defects"] = f"{learnt.weight:.2f}: {learnt.why}"
            notes |= {"defects on the map": learnt.map_why} if learnt.map_why else {}
        return Fitted(module.to(self._settings.device).eval(), {"bank_size": str(self._settings.bank_size), **notes})

    def _module(self, banks: Sequence[LevelBank]) -> MemoryBank:
        return MemoryBank(self._backbone, banks).to(self._settings.device).eval()

    def _learn(
        self,
        module: MemoryBank,
        owners: Sequence[npt.NDArray[np.int64]],
        good: Sequence[int],
        defects: Sequence[int],
    ) -> Learnt:
        """Args: owners of each level's bank vectors: the good images that they are from."""
        rng = np.random.default_rng((self._settings.seed, len(good), len(defects)))
        taught = [good[i] for i in spread(len(good), HEAD_GOOD)]
        known = [defects[i] for i in spread(len(defects), HEAD_DEFECTS)]
        has_masks = any(self._defects.has_mask(i) for i in known)
        good_places: list[Places] = []
        masked: list[Places | None] = []
        described: list[list[tuple[float, FloatArray]]] = [[], []]
        with torch.inference_mode():
            for i in taught:
                # By the bank without it: in its own, every residual of it is nothing.
                without = [bank.without(owner == i) for bank, owner in zip(_banks(module), owners, strict=True)]
                evidence = self._module(without).examine(self._maps_of(i, is_defect=False))
                described[0].append(_described(evidence))
                if has_masks:
                    log_map = _log_map(evidence)
                    chosen = choose_good(log_map, len(taught), rng)
                    good_places.append(_places(evidence, log_map, chosen, np.zeros(len(chosen), bool)))
            for i in known:
                evidence = module.examine(self._maps_of(i, is_defect=True))
                described[1].append(_described(evidence))
                covered = self._covered_by_mask(i, evidence)
                if covered is None:
                    masked.append(None)
                    continue
                log_map = _log_map(evidence)
                masked.append(_places(evidence, log_map, *choose_defect(log_map, covered, rng)))
        sides = [
            Described(np.array([score for score, _ in side]), np.stack([x for _, x in side]).astype(np.float64))
            for side in described
        ]
        return learn(sides[0], sides[1], len(self._levels), good_places, masked)

    def _covered_by_mask(self, index: int, evidence: Evidence) -> npt.NDArray[np.float64] | None:
        """Share of each place of the map that a defect's mask covers, (P,); None without a mask."""
        if index not in self._covered:
            mask = self._defects.mask(index)
            size = (evidence.top.shape[3], evidence.top.shape[2])
            self._covered[index] = (
                None
                if mask is None
                else cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA).ravel().astype(np.float64)
            )
        return self._covered[index]

    def _maps_of(self, index: int, *, is_defect: bool) -> list[Tensor]:
        """The backbone's maps of a training image, kept as long as there is room: every fold needs them again."""
        key = (is_defect, index)
        if key in self._maps:
            return self._maps[key]
        pixels = (self._defects if is_defect else self._images)[index]
        image = torch.from_numpy(pixels).unsqueeze(0).to(self._settings.device)
        maps: list[Tensor] = self._backbone(image.permute(0, 3, 1, 2).float())
        kept = 4 * sum(m.numel() for m in maps)
        if (len(self._maps) + 1) * kept <= _MAP_BYTES:
            self._maps[key] = maps
        return maps

    def _bank(
        self, level: Level, vectors: Tensor, owners: npt.NDArray[np.int64]
    ) -> tuple[LevelBank, npt.NDArray[np.int64]]:
        """A level's bank, and whose its vectors are. Args: vectors (P, D) of the good images, not normalised; owners
        (P,)."""
        offset = level.softness * vectors.square().sum(dim=1).sqrt().mean()
        candidates = soft_normalise(vectors[:, :, None, None], offset).flatten(0, 2).numpy()
        size = max(1, round(level.bank_share * self._settings.bank_size))
        chosen = greedy_coreset(project(candidates, PROJECTED, self._settings.seed), size)
        kept = np.sort(chosen)
        return LevelBank(level, offset, torch.from_numpy(candidates[kept])), owners[kept]

    def _patches_of(self, index: int) -> list[Tensor]:
        """An image's share of the candidates, its copies in other poses among them: one (P, D) a level, on the CPU."""
        if index not in self._patches:
            poses = [self._vectors(copy) for copy in copies(self._images[index], self._settings.pose)]
            levels = [torch.cat(parts) for parts in zip(*poses, strict=True)]
            share = math.ceil(CANDIDATES / len(self._images))
            chosen = [self._choose(index, *given, share) for given in zip(self._levels, levels, strict=True)]
            self._patches[index] = [v[kept].clone() for v, kept in zip(levels, chosen, strict=True)]
        return self._patches[index]

    def _choose(self, index: int, level: Level, vectors: Tensor, share: int) -> Tensor:
        """Which of an image's patches are candidates, ascending: by chance, in tiles the most different ones.

        A few dozen of each of hundreds of tiles must not miss what one tile alone shows, a printed number say. On a
        rendered plate a good one scored .52 instead of .60, a scratch .69 instead of .70. Of whole images chance is as
        good (image AUROC .910 against .909, the mean of five trainings on 60 to 267 images).

        Args: vectors (P, D). Returns: at most ``share`` indices.
        """
        rng = np.random.default_rng((self._settings.seed, index))
        if not self._are_tiles or share >= len(vectors):
            return _sample(len(vectors), share, rng)
        offset = level.softness * vectors.square().sum(dim=1).sqrt().mean()
        points = soft_normalise(vectors[:, :, None, None], offset).flatten(0, 2).numpy()
        return torch.from_numpy(np.sort(greedy_coreset(project(points, PROJECTED, self._settings.seed), share)))

    def _vectors(self, pixels: ByteArray) -> list[Tensor]:
        """All patch vectors of one image: one (P, D) a level, on the CPU."""
        image = torch.from_numpy(pixels).unsqueeze(0).to(self._settings.device)
        with torch.inference_mode():
            maps = self._backbone(image.permute(0, 3, 1, 2).float())
            return [patch_vectors(level, maps).flatten(2)[0].T.cpu() for level in self._levels]


def _banks(module: MemoryBank) -> list[LevelBank]:
    return [bank for bank in module.banks if isinstance(bank, LevelBank)]


def _described(evidence: Evidence) -> tuple[float, FloatArray]:
    """Log score and description of the one image."""
    return math.log(float(evidence.score[0])), describe(evidence)[0].cpu().numpy()


def _log_map(evidence: Evidence) -> npt.NDArray[np.float64]:
    """Of the one image: (P,)."""
    return evidence.anomaly_map.flatten().double().log().cpu().numpy()


def _places(
    evidence: Evidence,
    log_map: npt.NDArray[np.float64],
    chosen: npt.NDArray[np.int64],
    is_defect: npt.NDArray[np.bool_],
) -> Places:
    rows = patch_rows(evidence, torch.from_numpy(chosen).to(evidence.top.device))
    return Places(rows.double().cpu().numpy(), log_map[chosen], is_defect)


def _sample(count: int, share: int, rng: np.random.Generator) -> Tensor:
    """At most ``share`` of the indices below ``count``, in ascending order."""
    return torch.from_numpy(np.sort(rng.choice(count, min(count, share), replace=False)))


def restore_memory_bank(tensors: dict[str, Tensor], settings: TrainSettings) -> MemoryBank:
    """The module that ``fit`` returned, from its state dict."""
    network = BACKBONES[settings.backbone].build().eval().requires_grad_(False)
    empty = [
        LevelBank(level, torch.empty(()), torch.empty_like(tensors[f"banks.{i}.bank"]))
        for i, level in enumerate(levels_of(settings.backbone))
    ]
    levels = len(empty)
    head = None
    if "head.weight" in tensors:
        head = DefectHead((len(tensors["head.weight"]) - levels) // 4, levels)
    module = MemoryBank(network, empty, head)
    module.load_state_dict(tensors)
    return module.eval()
