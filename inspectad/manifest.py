"""What a model says of itself: plain data, checked when it is read, never executed and never used as a path."""

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, Final

from inspectad.errors import ModelFileError
from inspectad.images import FULL_SCALES, MAX_INPUT_PX, MIN_INPUT_PX, RESIZE_RULE
from inspectad.records import Verdict
from inspectad.tiles import MAX_TILE_PX, Tiling

SCHEMA_VERSION: Final = 2
"""2 since models may have been trained on tiles, which an inspectad that knows none would take for whole images."""
NO_BACKBONE: Final = "none"
"""`Manifest.backbone` of a model that stands on none; its hash is empty."""
MAX_MANIFEST_BYTES: Final = 64 * 2**20
_HUGE: Final = 1e300  # numbers beyond it, infinity and NaN are refused
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How scores become verdicts, and how far that can be trusted. Scores are raw, higher is more anomalous.

    Attributes:
        threshold: an image is NG when its score exceeds this.
        map_threshold: level of the anomaly map that regions and contours are cut at.
        false_reject_rate: the rate asked for, on good images like the training ones.
        supported_rate: the smallest rate whose threshold can be read off the N held-out scores: 3 / (N + 1), or more
            where some look like defects; 1 for none. A smaller one is extrapolated.
        expected_rate: false-reject rate that the rule expects at the threshold.
        rule: how the threshold was found, in words.
        held_out: how the scores below were obtained, in words.
        good_scores: held-out image scores of the good images, as a new image of the final model would score.
        defect_scores: image scores of the defects, which no part of the model has seen.
        correction: factor that held-out scores were multiplied by, for the images their smaller banks lacked.
        false_rejects, escapes: good images above, and defects at or below, the threshold that the others alone would
            have set; a threshold must not be judged by the images that set it.
    """

    threshold: float
    map_threshold: float
    false_reject_rate: float
    supported_rate: float
    expected_rate: float
    rule: str
    held_out: str
    good_scores: tuple[float, ...]
    defect_scores: tuple[float, ...]
    correction: float
    false_rejects: int
    escapes: int

    @property
    def unseen_scores(self) -> tuple[float, ...]:
        """Scores of all images, good and defect, that the model judging them had not seen."""
        return (*self.good_scores, *self.defect_scores)

    def verdict(self, score: float, threshold: float | None = None) -> Verdict:
        """OK only for a score that is a number not above the threshold; NaN is NG."""
        limit = self.threshold if threshold is None else threshold
        return Verdict.OK if score <= limit else Verdict.NG


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Proof that the graph in the file computes what the trained network computes.

    Attributes:
        images: how many real training images were compared.
        score_difference, map_difference: largest difference, relative to the largest value or the threshold if larger
            (with known defects in a memory bank: but for the few places of each map that ties may touch).
        limit: what was allowed.
        verdict_changes: images whose verdict differs.
        could_flip: held-out images (good and defect) so near the threshold that this difference could turn them.
        against: what the graph was compared with.
    """

    images: int
    score_difference: float
    map_difference: float
    limit: float
    verdict_changes: int
    could_flip: int
    against: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOn:
    """One training image: its name below its folder, and the SHA-256 of its file."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that is known of a model but its weights.

    Attributes:
        weights_sha256: of ``weights.safetensors`` as it was written together with this model.
        full_scale: white level of the training images, see `inspectad.images.full_scale_of`.
        tiling: how images are cut for the network; None where it sees whole images.
        aspect_range: smallest and largest width / height among what the network saw of the training images.
        settings: the method's own numbers, for people to read.
        versions: of what made it.
    """

    schema_version: int
    created_by: str
    method: str
    backbone: str
    backbone_sha256: str
    weights_sha256: str
    precision: str
    input_size_hw: tuple[int, int]
    resize_rule: str
    full_scale: int
    tiling: Tiling | None
    aspect_range: tuple[float, float]
    seed: int
    settings: dict[str, str]
    calibration: Calibration
    parity: Parity
    good_images: tuple[TrainedOn, ...]
    defect_images: tuple[TrainedOn, ...]
    versions: dict[str, str]


def manifest_to_json(manifest: Manifest) -> str:
    """The same manifest always gives the same text."""
    return json.dumps(dataclasses.asdict(manifest), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def manifest_from_json(text: str) -> Manifest:
    """Read a manifest that may come from anybody.

    Raises:
        ModelFileError: not JSON, not of this schema, or a value that makes no sense.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise ModelFileError(f"its manifest has {len(text)} characters; refused")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"its manifest is damaged ({error})") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise ModelFileError("its manifest is damaged (no schema_version)")
    if version > SCHEMA_VERSION:
        raise ModelFileError(
            f"it was written by a newer inspectad (schema {version}, this one reads up to {SCHEMA_VERSION}); "
            "install the newer inspectad here"
        )
    manifest: Manifest = _build(Manifest, data if version > 1 else {"tiling": None, **data}, "manifest")
    _check(manifest)
    return manifest


def _check(m: Manifest) -> None:
    c = m.calibration
    problems = [
        (not all(1 <= n <= 2 * MAX_INPUT_PX for n in m.input_size_hw), f"input size {m.input_size_hw}"),
        (m.resize_rule != RESIZE_RULE, f"resize rule {m.resize_rule!r}, this inspectad has {RESIZE_RULE!r}"),
        (m.full_scale not in FULL_SCALES, f"white level {m.full_scale}"),
        (not c.threshold > 0 or not c.map_threshold > 0, "a threshold that is not positive"),
        (m.tiling is not None and not _fits(m.tiling, m.input_size_hw), f"tiling {m.tiling}"),
        (not all(_SHA256.fullmatch(i.sha256) for i in (*m.good_images, *m.defect_images)), "a hash that is none"),
    ]
    for is_wrong, what in problems:
        if is_wrong:
            raise ModelFileError(f"its manifest cannot be used: {what[:200]}; train again")


def _fits(tiling: Tiling, input_size_hw: tuple[int, int]) -> bool:
    return (
        min(tiling.tile_hw) > 0
        and MIN_INPUT_PX <= max(tiling.tile_hw) <= MAX_TILE_PX
        and 0 < tiling.overlap <= 0.5
        and min(input_size_hw) >= MIN_INPUT_PX
    )


def _build(kind: Any, value: Any, where: str) -> Any:
    """Check a JSON value against a type annotation and convert it (lists to tuples, objects to dataclasses)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, value, where)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_build(arguments[0], v, where) for v in value)
        if len(value) == len(arguments):
            return tuple(_build(k, v, where) for k, v in zip(arguments, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {str(k): _build(arguments[1], v, where) for k, v in value.items()}
    elif origin is types.UnionType:
        return None if value is None else _build(arguments[0], value, where)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE:
            return float(value)
    elif origin is None and type(value) is kind:
        return value
    raise ModelFileError(f"its manifest is damaged ({where} is {str(value)[:80]!r})")


def _build_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ModelFileError(f"its manifest is damaged ({where} is no object)")
    hints = typing.get_type_hints(kind)
    if missing := hints.keys() - value.keys():
        raise ModelFileError(f"its manifest is damaged ({where} lacks {', '.join(sorted(missing))})")
    return kind(**{name: _build(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
