"""Sets and draws: what teaches never tests, the draws of a seed are nested, and they never change."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import write_png
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectad.benchmark.datasets import Dataset, read_dataset, read_datasets
from inspectad.benchmark.draws import draw, ranked
from inspectad.benchmark.plan import AccuracyConfig, parse_defect_shots, parse_methods, parse_shots, plan
from inspectad.errors import TrainingError, UsageError
from inspectad.image_files import ImageFile

QUICK = settings(deadline=None, max_examples=60)
PIXEL = np.zeros((4, 4), np.uint8)
NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=4, max_size=20, unique=True)


def files(root: str, names: list[str]) -> tuple[ImageFile, ...]:
    return tuple(ImageFile(Path(root, name), name) for name in sorted(names))


def dataset(good: list[str], defects: list[str], test_good: list[str] | None = None, name: str = "set") -> Dataset:
    test = None if test_good is None else files("test_good", test_good)
    return Dataset(name, files("train", good), test, files("defects", defects), None, "0" * 12)


def names_of(drawn: tuple[ImageFile, ...]) -> set[str]:
    return {file.name for file in drawn}


@QUICK
@given(NAMES, NAMES, st.integers(0, 99), st.data())
def test_a_draw_is_nested_disjoint_complete_and_always_the_same(
    good: list[str], defects: list[str], seed: int, data: st.DataObject
) -> None:
    some = dataset(good, defects)
    shots, more = sorted(data.draw(st.tuples(*[st.integers(1, len(good) - 1)] * 2)))
    defect_shots, more_defects = sorted(data.draw(st.tuples(*[st.integers(0, len(defects) - 1)] * 2)))
    small, large = draw(some, shots, defect_shots, seed), draw(some, more, more_defects, seed)
    assert small == draw(dataset(good[::-1], defects[::-1], name="other"), shots, defect_shots, seed)
    assert names_of(small.train_good) <= names_of(large.train_good)
    assert names_of(small.train_defects) <= names_of(large.train_defects)
    for found in (small, large):
        assert not names_of(found.train_good) & names_of(found.test_good)
        assert not names_of(found.train_defects) & names_of(found.test_defects)
        assert names_of(found.train_good) | names_of(found.test_good) == set(good)
        assert names_of(found.train_defects) | names_of(found.test_defects) == set(defects)
    assert (len(small.train_good), len(small.train_defects)) == (shots, defect_shots)


@QUICK
@given(NAMES, st.integers(0, 99))
def test_an_image_that_is_gone_leaves_the_others_in_their_order(names: list[str], seed: int) -> None:
    order = [file.name for file in ranked(files("", names), seed)]
    fewer = [file.name for file in ranked(files("", names[1:]), seed)]
    assert fewer == [name for name in order if name != names[0]]


def test_the_draws_are_those_of_the_first_version() -> None:
    """Were they ever to change, no benchmark could be compared with an earlier one."""
    ten = files("", [f"{i:03}.png" for i in range(10)])
    assert [f.name[:3] for f in ranked(ten, 0)] == ORDER_0
    assert [f.name[:3] for f in ranked(ten, 1)] == ORDER_1
    by_hand = sorted((hashlib.sha256(b"0/%03d.png" % i).hexdigest(), f"{i:03}") for i in range(10))
    assert [name for _, name in by_hand] == ORDER_0


ORDER_0 = ["008", "006", "001", "000", "003", "004", "005", "007", "002", "009"]
ORDER_1 = ["000", "001", "003", "009", "007", "006", "002", "004", "008", "005"]


def test_a_set_with_a_test_of_its_own_keeps_it_and_can_teach_all() -> None:
    some = dataset(["a", "b"], ["x/1", "x/2", "y/1"], test_good=["a", "c"])
    drawn = draw(some, None, 1, 0)
    assert names_of(drawn.train_good) == {"a", "b"}
    assert drawn.test_good == some.test_good
    assert len(drawn.test_defects) == 2


@pytest.mark.parametrize(
    ("shots", "defect_shots", "words"),
    [
        (4, 0, "set has 3 good training images, not the 4 that were asked for"),
        (1, 3, "set has 2 defects, not the 3"),
        (None, 0, "no good image is left"),
        (1, 2, "no defect is left"),
    ],
)
def test_too_many_asked_for(shots: int | None, defect_shots: int, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        draw(dataset(["a", "b", "c"], ["x", "y"]), shots, defect_shots, 0)


def make(root: Path, *names: str) -> Path:
    for name in names:
        write_png(root / name, PIXEL)
    return root


MVTEC = ("train/good/0.png", "train/good/sub/0.png", "test/good/0.png", "test/a/0.png", "test/b/0.png")


def test_mvtec_layout(tmp_path: Path) -> None:
    found = read_dataset(make(tmp_path / "part", *MVTEC, "ground_truth/a/0_mask.png", "other/9.png"))
    assert found.name == "part"
    assert [f.name for f in found.train_good] == ["0.png", "sub/0.png"]
    assert found.test_good is not None
    assert [f.path for f in found.test_good] == [tmp_path / "part" / "test" / "good" / "0.png"]
    assert [f.name for f in found.defects] == ["a/0.png", "b/0.png"]
    assert found.masks == tmp_path / "part" / "ground_truth"


def test_plain_layouts(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", "good/0.png", "good/1.png", "defects/x/0.png", "line/0.png")
    found = read_dataset(plain)
    assert [f.name for f in found.defects] == ["x/0.png"]
    assert (found.test_good, found.masks) == (None, None)
    kinds = make(
        tmp_path / "kinds", "good/0.png", "scratch/0.png", "dent/0.png", "ground_truth/dent/0_mask.png", "1.png"
    )
    assert [f.name for f in read_dataset(kinds).defects] == ["dent/0.png", "scratch/0.png"]


@pytest.mark.parametrize("gone", ["train/good", "test/good", "test/<defect>"])
def test_a_layout_with_a_part_missing(tmp_path: Path, gone: str) -> None:
    start = gone.replace("<defect>", "")
    kept = [n for n in MVTEC if not n.startswith(start) or (start == "test/" and n.startswith("test/good"))]
    with pytest.raises(UsageError, match=r"part: no images in .*; a dataset holds train/good"):
        read_dataset(make(tmp_path / "part", *kept))


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    one, two = make(tmp_path / "1" / "part", *MVTEC), make(tmp_path / "2" / "part", *MVTEC)
    with pytest.raises(UsageError, match="have the same name"):
        read_datasets([one, two])
    with pytest.raises(UsageError, match="have the same name"):
        read_datasets([one, one])


def test_the_digest_knows_the_files_that_count(tmp_path: Path) -> None:
    part = make(tmp_path / "part", *MVTEC)
    before = read_dataset(part).digest
    assert read_dataset(make(tmp_path / "elsewhere" / "part", *MVTEC)).digest == before
    assert read_dataset(make(part, "other/0.png")).digest == before
    assert read_dataset(make(part, "ground_truth/a/0_mask.png")).digest != before


def test_lists_in_options() -> None:
    assert parse_shots("1, 4,016,all,4") == ("1", "4", "16", "all")
    assert parse_defect_shots("0,10") == (0, 10)
    assert parse_methods("b,a", ["a", "b"]) == ("b", "a")


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "x", "1.5", "²"])
def test_lists_that_are_none(text: str) -> None:
    for parse in (parse_shots, lambda t: parse_defect_shots(t.replace("0", "y"))):
        with pytest.raises(UsageError, match="shots"):
            parse(text)
    with pytest.raises(UsageError, match="no method named"):
        parse_methods(text, ["memory_bank"])


def test_every_seed_draws_the_same_when_all_are_drawn() -> None:
    config = AccuracyConfig(datasets=(), shots=("2", "all"), defect_shots=(0, 1), seeds=2, methods=("m", "n"))
    sets = {name: dataset(["a", "b"], ["x", "y"], ["t"], name) for name in ("one", "two")}
    cells = plan(config, sets)
    assert len(set(cells)) == len(cells) == 2 * 2 * (2 + 2 + 1 + 2)
    assert [c.seed for c in cells if (c.good_shots, c.defect_shots, c.method) == ("all", 0, "m")] == [0, 0]
    with_peer = plan(config, sets, "anomalib 9")
    assert len(with_peer) == len(cells) * 3 // 2
    assert {(c.dataset, c.good_shots, c.seed) for c in with_peer if c.method == "anomalib_patchcore"} == {
        (c.dataset, c.good_shots, c.seed) for c in cells
    }
