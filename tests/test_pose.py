"""Poses: the copies against numpy and SciPy, and whether the good images tell how parts lie, on rendered parts."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_png
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

import inspectad
from inspectad.cli import PoseName
from inspectad.demo_part import render_part
from inspectad.errors import UsageError
from inspectad.foreground import part_share
from inspectad.images import choose_input_size
from inspectad.methods.memory_bank import MemoryBankTrainer
from inspectad.nn.backbone import load_backbone
from inspectad.nn.patches import SAME, nearest_distance
from inspectad.nn.pose_evidence import PoseEvidence, _shares, examine_pose
from inspectad.nn.settings import TrainSettings
from inspectad.pose import FIXED, MIRRORS, POSES, Pose, any_angle, copies, pose_named, turn
from inspectad.train_config import SMALL_PART_SCALE, TrainConfig, choose_settings
from inspectad.training_data import select, survey

QUICK = settings(deadline=None, max_examples=30)
SIZE_HW = (96, 128)
ANGLES = (0, 50, 110, 170, 215, 300)


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """Coloured blobs: without edges, so that interpolations agree."""
    noise = np.random.default_rng(seed).random((height, width, 3)) * 255
    return ndimage.gaussian_filter(noise, (2, 2, 0)).clip(0, 255).astype(np.uint8)


def parts(count: int, change: Callable[[np.ndarray, int], np.ndarray] = lambda image, _: image) -> list[np.ndarray]:
    return [change(render_part(i, None, SIZE_HW).image, i) for i in range(count)]


def turned(image: np.ndarray, i: int) -> np.ndarray:
    return turn(image, ANGLES[i])


@QUICK
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_the_mirrored_copies_equal_numpy(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    expected = {"left-right": np.fliplr(image), "up-down": np.flipud(image), "half turn": np.rot90(image, 2)}
    assert MIRRORS.keys() == expected.keys()
    original, *made = copies(image, Pose(tuple(MIRRORS)))
    np.testing.assert_array_equal(original, image)
    for name, copy in zip(MIRRORS, made, strict=True):
        np.testing.assert_array_equal(copy, expected[name])
        assert copy.flags.c_contiguous


@QUICK
@given(st.integers(20, 50), st.integers(20, 50), st.floats(-360, 360), st.integers(0, 1000))
def test_a_turned_copy_equals_scipy(height: int, width: int, degrees: float, seed: int) -> None:
    image = smooth(height, width, seed)
    angle = np.radians(degrees)
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # rows go down
    centre = (np.array([height, width]) - 1) / 2
    expected = np.stack(
        [
            ndimage.affine_transform(
                image[..., c].astype(float), inverse, centre - inverse @ centre, order=1, mode="mirror"
            )
            for c in range(3)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(
        turn(image, degrees).astype(float), expected, atol=4
    )  # OpenCV counts in 32nds of a pixel


def test_quarters_of_a_square_are_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 33, 3), np.uint8)
    original, *made = copies(image, Pose(turns=4))
    np.testing.assert_array_equal(original, image)
    for quarters, copy in enumerate(made, 1):
        np.testing.assert_array_equal(copy, np.rot90(image, quarters))


@given(st.integers(1, 10**4))
def test_the_fewer_images_the_more_angles(images: int) -> None:
    turns = any_angle(images).turns
    assert any_angle(images + 1).turns <= turns
    assert turns >= 4
    assert turns * images <= 128 or turns == 4
    assert len(copies(np.zeros((8, 8, 3), np.uint8), any_angle(images))) == turns


def test_the_command_line_and_the_module_know_the_same_poses() -> None:
    assert tuple(PoseName) == POSES
    assert pose_named("fixed", 3) == FIXED
    assert pose_named("mirrored", 3).mirrors == tuple(MIRRORS)
    assert pose_named("any", 3) == any_angle(3)
    with pytest.raises(UsageError, match="no pose named 'upright'; there are: auto, fixed, mirrored, any"):
        pose_named("upright", 3)


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    return load_backbone("efficientnet_lite0")[0]


def evidence(images: list[np.ndarray], backbone: torch.nn.Module) -> PoseEvidence:
    return examine_pose(images, backbone, "cpu", lambda *_: None)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_parts_that_lie_alike_are_left_as_photographed(count: int, backbone: torch.nn.Module) -> None:
    found = evidence(parts(count), backbone)
    assert found.pose(count) == FIXED
    assert max(found.turned, *found.mirrors.values()) < 0.35


@pytest.mark.parametrize("count", [2, 4, 6])
def test_parts_turned_to_any_angle_are_noticed(count: int, backbone: torch.nn.Module) -> None:
    found = evidence(parts(count, turned), backbone)
    assert found.pose(count) == any_angle(count)


@pytest.mark.parametrize("name", ["left-right", "up-down", "half turn"])
def test_the_one_mirroring_that_occurs_is_noticed(name: str, backbone: torch.nn.Module) -> None:
    found = evidence(parts(6, lambda image, i: MIRRORS[name](image) if i % 2 else image), backbone)
    assert found.pose(6) == Pose((name,))
    assert f"{name} 0." in str(found)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.5, 0.2, 0.1), ("left-right",)),
        ((0.6, 0.55, 0.49), ("left-right", "up-down", "half turn")),  # one after the other is the third
        ((0.1, 0.7, 0.8), ("left-right", "up-down", "half turn")),
        ((0.49, 0.49, 0.49), ()),
    ],
)
def test_mirrorings_that_follow_from_others_are_added(shares: tuple[float, ...], expected: tuple[str, ...]) -> None:
    assert PoseEvidence(dict(zip(MIRRORS, shares, strict=True)), 0.49, 4).pose(4) == Pose(expected)


def test_long_parts_are_never_taken_for_turned_ones(backbone: torch.nn.Module) -> None:
    """A quarter turn of a long part would be mostly reflection. Grain-free noise looks alike at any angle."""
    square = [np.random.default_rng(i).integers(0, 256, (96, 144, 3), np.uint8) for i in range(3)]
    long = [np.random.default_rng(i).integers(0, 256, (96, 160, 3), np.uint8) for i in range(3)]
    assert evidence(square, backbone).turned > 0.5
    assert evidence(long, backbone).turned == 0


@QUICK
@given(st.integers(0, 10**6))
def test_the_share_of_nearer_copies_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = [torch.from_numpy(rng.standard_normal((30, 5)).astype(np.float32)) for _ in range(2)]
    others = [[torch.from_numpy(rng.standard_normal((30, 5)).astype(np.float32)) for _ in range(2)] for _ in range(2)]
    copied = [[m + 0.5 * torch.from_numpy(rng.standard_normal((30, 5)).astype(np.float32)) for m in o] for o in others]
    shares = []
    for level in range(2):
        good = np.concatenate([o[level].numpy() for o in others])
        offset = 0.5 * np.linalg.norm(good, axis=1).mean()
        unit = lambda x: x / (np.linalg.norm(x, axis=1, keepdims=True) + offset)  # noqa: B023, E731
        to_good = cdist(unit(image[level].numpy()), unit(good)).min(axis=1)
        to_copy = cdist(unit(image[level].numpy()), unit(np.concatenate([c[level].numpy() for c in copied]))).min(
            axis=1
        )
        hardest = np.argsort(to_good)[-6:]  # a fifth of 30
        shares.append((to_copy < to_good)[hardest].mean())
    assert _shares(image, others, {"copies": copied})["copies"] == pytest.approx(np.mean(shares), abs=1e-6)


def test_the_bank_holds_the_copies_of_its_images_and_of_no_others() -> None:
    images = parts(3)
    pose = Pose(("left-right",))
    trainer = MemoryBankTrainer(images, [], TrainSettings(input_size_hw=SIZE_HW, bank_size=10**6, pose=pose))
    trainer.fit(range(3), [])  # fills the cache of patches
    module = trainer.fit([0, 2], []).module
    with torch.inference_mode():
        for i, image in enumerate(images):
            mirrored = torch.from_numpy(image[:, ::-1].copy())[None]
            score = float(module(mirrored)[0])
            assert (score <= 1.01 * SAME) == (i != 1)
    fixed = MemoryBankTrainer(images, [], TrainSettings(input_size_hw=SIZE_HW, bank_size=10**6)).fit([0, 2], []).module
    assert len(module.banks[0].bank) == 2 * len(fixed.banks[0].bank)


def test_the_distance_to_a_bank_with_copies_is_the_smaller_of_both() -> None:
    rng = np.random.default_rng(3)
    patches, bank, more = (torch.from_numpy(rng.random((n, 8), np.float32)) for n in (40, 30, 20))
    both = nearest_distance(patches, torch.cat([bank, more]))
    torch.testing.assert_close(both, torch.minimum(nearest_distance(patches, bank), nearest_distance(patches, more)))


def good_folder(folder: Path, images: list[np.ndarray]) -> Path:
    for i, image in enumerate(images):
        write_png(folder / f"{i}.png", image)
    return folder


def settings_of(good: Path, **options: object) -> tuple[TrainSettings, dict[str, str]]:
    selection = select(survey(good), None)
    return choose_settings(TrainConfig(good=good, device="cpu", **options), selection.good, selection.full_scale)


def disc(radius: int, background: int = 30, size_hw: tuple[int, int] = (120, 160)) -> np.ndarray:
    image = np.full((*size_hw, 3), background, np.uint8)
    return cv2.circle(image, (size_hw[1] // 2 + 9, size_hw[0] // 2 - 4), radius, (200, 160, 90), -1)


@pytest.mark.parametrize("radius", [12, 25, 45])
@pytest.mark.parametrize("background", [0, 30, 250])
def test_the_share_of_a_part_on_a_plain_background_is_its_area(radius: int, background: int) -> None:
    assert part_share(disc(radius, background)) == pytest.approx(np.pi * radius**2 / (120 * 160), abs=0.02)


def test_noise_on_the_background_is_no_part_and_a_full_frame_has_no_share() -> None:
    noise = np.random.default_rng(0).normal(0, 6, (120, 160, 3))
    noisy = (disc(25) + noise).clip(0, 255).astype(np.uint8)
    assert part_share(noisy) == pytest.approx(np.pi * 25**2 / (120 * 160), abs=0.02)
    assert part_share(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)) is None
    assert part_share(disc(70)) is None  # reaches the border
    assert part_share(np.full((64, 64, 3), 77, np.uint8)) == 0


def small_part(image: np.ndarray, i: int) -> np.ndarray:
    """A part, turned, at half its length on a plain mat."""
    frame = np.full((*SIZE_HW, 3), 40, np.uint8)
    small = cv2.resize(image[8:-8, 12:-12], None, fx=0.55, fy=0.55, interpolation=cv2.INTER_AREA)
    frame[26 : 26 + small.shape[0], 36 : 36 + small.shape[1]] = small
    matrix = cv2.getRotationMatrix2D((63.5, 47.5), ANGLES[i], 1.0)
    return cv2.warpAffine(frame, matrix, SIZE_HW[::-1], borderMode=cv2.BORDER_CONSTANT, borderValue=(40, 40, 40))


def test_small_parts_at_any_angle_get_a_larger_input_unless_its_size_was_given(tmp_path: Path) -> None:
    good = good_folder(tmp_path / "small", parts(3, small_part))
    free, reasons = settings_of(good)
    assert free.pose == any_angle(3)
    assert free.input_size_hw == choose_input_size([SIZE_HW], scale=SMALL_PART_SCALE) == (416, 560)
    assert reasons["pose"] == "any angle, each good image turned to 24 of them"
    assert "of 3 left out" in reasons["pose from"]
    assert reasons["input"].startswith("enlarged: parts at any angle that fill ")
    assert settings_of(good, size_px=128)[0].input_size_hw == SIZE_HW
    assert settings_of(good, pose="fixed")[0].input_size_hw == choose_input_size([SIZE_HW])
    large = good_folder(tmp_path / "large", parts(3, turned))
    assert settings_of(large)[0].pose == any_angle(3)
    assert settings_of(large)[0].input_size_hw == choose_input_size([SIZE_HW])


def test_one_image_cannot_tell_and_the_user_can(tmp_path: Path) -> None:
    good = good_folder(tmp_path, parts(1))
    assert settings_of(good)[0].pose == FIXED
    assert "--pose" in settings_of(good)[1]["pose from"]
    assert settings_of(good, pose="any")[0].pose == any_angle(1)


def test_one_image_and_any_angle_accepts_the_part_at_another_angle(tmp_path: Path) -> None:
    part = render_part(0, None, (160, 160)).image
    good = good_folder(tmp_path / "good", [part])
    frames = [turn(part, 99), turn(render_part(0, "dent", (160, 160)).image, 99)]
    severity = {}  # score / threshold, of the good and of the dented part
    for pose in ("fixed", "any"):
        inspectad.train(good, None, tmp_path / pose, size_px=160, pose=pose, device="cpu")
        detector = inspectad.Detector.load(tmp_path / pose)
        severity[pose] = detector.predict(frames).image_scores / detector.threshold
    assert 0.3 < severity["any"][0] <= 1 < severity["fixed"][0]
    assert severity["any"][1] > 1.05 * severity["any"][0]


def test_any_angle_tells_defects_of_turned_parts_from_good_ones(backbone: torch.nn.Module) -> None:
    """The point of it all, on parts of other seeds than the good ones, at angles between those of the copies."""
    size_hw = (240, 240)
    images = [turn(render_part(i, None, size_hw).image, a) for i, a in enumerate((5, 130, 250))]
    auroc = {}
    for pose in (FIXED, evidence(images, backbone).pose(3)):
        module = MemoryBankTrainer(images, [], TrainSettings(input_size_hw=size_hw, pose=pose)).fit(range(3), []).module
        scores = []
        for defect in (None, "dent", "stain"):
            frames = [
                turn(render_part(50 + i, defect, size_hw).image, a) for i, a in enumerate((17, 81, 140, 222, 283, 339))
            ]
            with torch.inference_mode():
                scores.append(module(torch.from_numpy(np.stack(frames)))[0].numpy())
        good, defects = scores[0], np.concatenate(scores[1:])
        auroc[pose.turns] = float((defects[:, None] > good).mean())
    assert auroc[24] > 0.9
    assert auroc[24] > auroc[1] + 0.15


def test_turning_has_a_direction() -> None:
    image = np.zeros((21, 21, 3), np.uint8)
    image[10, 18] = 255  # to the right of the centre
    assert cv2.minMaxLoc(turn(image, 90)[..., 0])[3] == (10, 2)  # counter-clockwise: above it, (x, y)
