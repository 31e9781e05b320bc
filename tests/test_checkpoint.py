"""How far a training came: kept whole, found again by the same training alone, gone when it is over."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inspectad.checkpoint import Checkpoints, training_key
from inspectad.errors import OutputError
from inspectad.image_files import find_images
from inspectad.nn.settings import TrainSettings

TENSORS = {
    "weights": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,  # not contiguous
    "half": torch.tensor([[1.5, -2.25]], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "done": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "model" / "checkpoint", "key")


@pytest.fixture
def file(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    checkpoints.save("fit-0", TENSORS)
    return tmp_path / "model" / "checkpoint" / "fit-0.safetensors"


def are_equal(found: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> bool:
    return (
        found is not None
        and found.keys() == expected.keys()
        and all(torch.equal(found[k], expected[k]) and found[k].dtype == expected[k].dtype for k in expected)
    )


def test_what_was_saved_is_loaded_bit_for_bit(checkpoints: Checkpoints, file: Path) -> None:
    assert are_equal(checkpoints.load("fit-0"), TENSORS)
    assert checkpoints.load("fit-1") is None
    assert checkpoints.has_any()


def test_the_last_one_counts_and_nothing_else_is_left(checkpoints: Checkpoints, file: Path) -> None:
    later = {"step": torch.tensor(8)}
    checkpoints.save("fit-0", later)
    assert are_equal(checkpoints.load("fit-0"), later)
    assert os.listdir(file.parent) == ["fit-0.safetensors"]


def test_one_of_another_training_is_none_and_is_replaced(checkpoints: Checkpoints, file: Path) -> None:
    other = Checkpoints(file.parent, "another key")
    assert other.load("fit-0") is None
    assert not other.has_any()
    other.save("fit-0", {"step": torch.tensor(1)})
    assert are_equal(other.load("fit-0"), {"step": torch.tensor(1)})
    assert checkpoints.load("fit-0") is None


def test_a_changed_byte_anywhere_or_a_torn_file_is_none(checkpoints: Checkpoints, file: Path) -> None:
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        found = checkpoints.load("fit-0")
        assert found is None or are_equal(found, TENSORS)  # a space of the header may become another one
    for length in (0, 7, 8, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert checkpoints.load("fit-0") is None
        assert not checkpoints.has_any()
    file.write_bytes(whole)
    assert are_equal(checkpoints.load("fit-0"), TENSORS)


def test_a_changed_weight_is_noticed(checkpoints: Checkpoints, file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 0x01  # safetensors has no checksum: it is a valid file of other values
    file.write_bytes(whole)
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == set(TENSORS)
    assert checkpoints.load("fit-0") is None


def test_a_file_without_our_notes_and_a_folder_in_its_place_are_none(checkpoints: Checkpoints, file: Path) -> None:
    save_file({"step": torch.tensor(1)}, file)
    assert checkpoints.load("fit-0") is None
    file.unlink()
    file.mkdir()
    assert checkpoints.load("fit-0") is None


def test_nothing_in_it_is_executed(checkpoints: Checkpoints, file: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(file.parent / "executed"),)

    file.write_bytes(pickle.dumps(Planted()))
    assert checkpoints.load("fit-0") is None
    torch.save({"step": Planted()}, file)
    assert checkpoints.load("fit-0") is None
    assert os.listdir(file.parent) == ["fit-0.safetensors"]


def test_where_it_cannot_be_written_the_error_names_the_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "checkpoint").write_text("a file in the folder's place")
    with pytest.raises(OutputError, match=r"fit-0\.safetensors: cannot be written"):
        checkpoints.save("fit-0", TENSORS)
    assert checkpoints.load("fit-0") is None


def test_a_link_in_the_folders_place_is_not_followed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.safetensors").write_text("of somebody else")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "checkpoint").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="link leads out"):
        checkpoints.save("fit-0", TENSORS)
    checkpoints.clear()
    assert os.listdir(elsewhere) == ["precious.safetensors"]


def test_a_failed_write_keeps_the_old_one(
    checkpoints: Checkpoints, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoints.save("fit-0", {"step": torch.tensor(8)})
    assert are_equal(checkpoints.load("fit-0"), TENSORS)
    assert os.listdir(file.parent) == ["fit-0.safetensors"]


def test_clearing_removes_all_of_it_and_what_kills_left(checkpoints: Checkpoints, file: Path) -> None:
    Checkpoints(file.parent, "another key").save("fit-1", TENSORS)
    (file.parent / f".inspectad-{'0' * 32}.tmp").write_bytes(b"half a checkpoint")
    checkpoints.clear()
    assert not file.parent.exists()
    checkpoints.clear()  # twice does no harm


def test_clearing_leaves_what_is_not_ours(checkpoints: Checkpoints, file: Path) -> None:
    (file.parent / "notes.txt").write_text("mine")
    checkpoints.clear()
    assert os.listdir(file.parent) == ["notes.txt"]


def test_it_is_never_taken_for_an_image(file: Path, tmp_path: Path) -> None:
    (file.parent / f".inspectad-{'0' * 32}.tmp").write_bytes(b"half a checkpoint")
    assert find_images(tmp_path) == []


def test_the_key_knows_all_that_the_model_depends_on_and_nothing_else(tmp_path: Path) -> None:
    def key(images: tuple[str, ...] = ("a", "b"), version: str = "1", **more: object) -> str:
        return training_key(TrainSettings(input_size_hw=(64, 64), **more), images, [version])

    usual = key()
    assert usual == key() == key(checkpoints=Checkpoints(tmp_path, "x"))
    others = [
        key(images=("b", "a")),
        key(images=("ab",)),
        key(version="2"),
        key(seed=1),
        key(steps=10),
        key(transformations="all"),
        key(device="cuda"),
    ]
    assert len({usual, *others}) == 8
    assert all(len(text) == 64 for text in others)
