"""Masks and defects in training: what is believed, what is refused, and what a person is told."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PART_HW, RunCli, write_png

from inspectad.api import train
from inspectad.demo_part import render_part
from inspectad.detector import OnnxDetector
from inspectad.errors import UsageError
from inspectad.progress import silent
from inspectad.train_config import TrainConfig
from inspectad.training import _select
from inspectad.training_data import DefectImages, find_masks, select, survey

GOOD, DEFECTS = 4, 5


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """good/, defects/ (more of them than good ones) and masks/ of all defects."""
    for i in range(GOOD):
        write_png(tmp_path / "good" / f"part{i}.png", render_part(i, None, PART_HW).image)
    for i in range(DEFECTS):
        part = render_part(50 + i, "stain", PART_HW)
        write_png(tmp_path / "defects" / "stain" / f"{i:03}.png", part.image)
        write_png(tmp_path / "masks" / "stain" / f"{i:03}_mask.png", 255 * part.mask)
    return tmp_path


def found_in(folders: Path, masks: str = "masks"):
    selection = select(survey(folders / "good"), survey(folders / "defects"))
    return selection, find_masks(folders / masks, selection.defects)


def test_every_defect_gets_its_mask_by_name(folders: Path) -> None:
    selection, masks = found_in(folders)
    assert masks.warnings == ()
    assert [path.name for path in masks.paths if path] == [f"{i:03}_mask.png" for i in range(DEFECTS)]
    images = DefectImages(selection.defects, (32, 32), 255, masks.paths)
    for i in range(DEFECTS):
        mask = images.mask(i)
        assert mask is not None
        np.testing.assert_array_equal(mask > 0, render_part(50 + i, "stain", PART_HW).mask > 0)


def test_a_missing_and_an_empty_mask_are_named_and_the_images_kept(folders: Path) -> None:
    (folders / "masks" / "stain" / "001_mask.png").unlink()
    write_png(folders / "masks" / "stain" / "003_mask.png", np.zeros(PART_HW, np.uint8))
    selection, masks = found_in(folders)
    assert [path is not None for path in masks.paths] == [True, False, True, False, True]
    assert len(selection.defects) == DEFECTS
    assert "001.png: has no mask" in masks.warnings[0]
    assert "003_mask.png: marks nothing" in masks.warnings[1]


def damage(folders: Path, kind: str) -> None:
    path = folders / "masks" / "stain" / "002_mask.png"
    if kind == "size":
        write_png(path, np.zeros((8, 8), np.uint8))
    elif kind == "grey":
        write_png(path, render_part(0, None, PART_HW).image)
    else:
        path.write_bytes(b"no image")


@pytest.mark.parametrize(
    ("kind", "words"), [("size", "must be equal"), ("grey", "more than two values"), ("text", "not an image")]
)
def test_a_mask_that_cannot_be_one_is_refused_by_name(folders: Path, kind: str, words: str) -> None:
    damage(folders, kind)
    with pytest.raises(UsageError, match=rf"002_mask\.png.*{words}"):
        found_in(folders)


def test_masks_that_match_nothing_are_refused_with_the_name_that_would(folders: Path) -> None:
    with pytest.raises(UsageError, match=r"of none of the 5 defects; for stain/000\.png it would be stain/000_mask"):
        found_in(folders, "good")
    with pytest.raises(UsageError, match="no such folder"):
        found_in(folders, "elsewhere")


def test_the_command_line_says_what_is_wrong_with_masks(folders: Path, run_here: RunCli) -> None:
    for arguments, words in (
        (("train", "good", "--masks", "masks"), "give the folder of defects too"),
        (("train", "good", "defects", "--masks", "defects"), "give the masks a folder of their own"),
        (("train", "good", "defects", "--masks", "good/part0.png"), "no such folder"),
    ):
        done = run_here(*arguments, cwd=folders)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert not (folders / "model").exists()


def test_masks_below_the_defects_are_no_defects(folders: Path) -> None:
    (folders / "masks").rename(folders / "defects" / "ground_truth")
    defects = folders / "defects"
    given = TrainConfig(good=folders / "good", defects=defects, masks=defects / "ground_truth")
    assert len(_select(given, silent).defects) == DEFECTS


@pytest.mark.parametrize("count", [1, DEFECTS])
def test_info_says_what_weight_the_defects_got_and_why(folders: Path, run_here: RunCli, count: int) -> None:
    for i in range(count, DEFECTS):
        (folders / "defects" / "stain" / f"{i:03}.png").unlink()
    given = ("train", "good", "defects", "--masks", "masks", "--size", "64", "--device", "cpu")
    done = run_here(*given, cwd=folders)
    assert done.returncode == 0, done.stderr
    shown = run_here("info", cwd=folders).stdout
    weight = re.search(r"weight of the defects\s+([0-9.]+): (.*)", shown)
    assert weight is not None
    assert 0 <= float(weight[1]) <= count / (count + 5) + 0.005
    assert ("one defect cannot be checked" if count == 1 else "of left-out pairs") in weight[2]
    assert weight[0].split(":", 1)[1].strip() in done.stderr  # and train says it too
    detector = OnnxDetector.load(folders / "model", "cpu")
    image = cv2.cvtColor(cv2.imread(str(folders / "defects" / "stain" / "000.png")), cv2.COLOR_BGR2RGB)
    assert np.isfinite(detector.predict([image]).image_scores[0])


def test_a_mislabelled_defect_is_named(tmp_path: Path, run_here: RunCli) -> None:
    for i in range(8):
        write_png(tmp_path / "good" / f"part{i}.png", render_part(i, None, PART_HW).image)
    for i in range(4):
        write_png(tmp_path / "defects" / f"stain{i}.png", render_part(50 + i, "stain", PART_HW).image)
    write_png(tmp_path / "defects" / "in_fact_good.png", render_part(71, None, PART_HW).image)
    done = run_here("train", "good", "defects", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "in_fact_good.png: scores like a good image" in done.stderr
    assert "stain0.png" not in done.stderr


def test_good_images_that_all_but_equal_each_other_are_no_division_by_nothing(tmp_path: Path) -> None:
    part = render_part(0, None, PART_HW).image
    for i in range(5):
        odd = part.copy()
        odd[i, i] ^= 1  # not the same picture, but the same part
        write_png(tmp_path / "good" / f"{i}.png", odd)
    for i in range(3):
        write_png(tmp_path / "defects" / f"{i}.png", render_part(i, "dent", PART_HW).image)
    report = train(tmp_path / "good", tmp_path / "defects", tmp_path / "model", size_px=64, device="cpu")
    assert report.manifest.parity.verdict_changes == 0
    assert np.isfinite(report.manifest.calibration.threshold)
