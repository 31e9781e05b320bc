"""The examples do what their headers say: each is run as a user runs it (line.ps1 needs Windows, and is only read)."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_png
from PIL import Image

import inspectad
from inspectad.demo_part import render_part

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_python(name, *arguments, cwd, options=()):
    """An example as a subprocess of this Python; its exit code, output lines and messages."""
    command = [sys.executable, *options, EXAMPLES / name, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # on busy cores, more threads mostly wait for each other
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=200)
    return done.returncode, done.stdout.splitlines(), done.stderr


def negative(source, target):
    """A part that no model can take for a good one."""
    cv2.imencode(".png", 255 - cv2.imread(str(source)))[1].tofile(target)


def scan(run_cli, folder, model, output):
    """Verdict and score by name, as `inspectad scan` has them."""
    run_cli("scan", folder, "-m", model, "-o", output)
    with open(output / "results.csv", encoding="utf-8", newline="") as file:
        return {row["image"]: (row["verdict"], row["score"] and float(row["score"])) for row in csv.DictReader(file)}


def test_readme_lists_every_file():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| \[(.+?)\]\(\1\)", table, re.MULTILINE))
    assert listed == {name for name in os.listdir(EXAMPLES) if name.endswith((".py", ".sh", ".ps1"))}


def test_powershell_script_is_ascii():
    assert (EXAMPLES / "line.ps1").read_bytes().isascii()  # Windows PowerShell 5.1 reads anything else wrongly


@pytest.fixture
def odd_images(trained, tmp_path):
    """One image of each kind that decoding and resizing treat differently."""
    folder = tmp_path / "odd"
    folder.mkdir()
    part = Image.open(trained.good / "good_0.png")
    part.save(folder / "plain.png")
    negative(trained.good / "good_1.png", folder / "negative.png")
    part.convert("L").save(folder / "grey.png")
    part.convert("RGBA").save(folder / "alpha.png")
    part.convert("P").save(folder / "palette.png")
    part.resize((50, 40)).save(folder / "small.png")
    part.resize((901, 40)).save(folder / "wide and low.png")
    part.resize((40, 901)).save(folder / "narrow and high.png")
    part.resize((1000, 803)).save(folder / "large.jpg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    part.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=exif)
    cv2.imwrite(str(folder / "16 bits.png"), np.full((160, 192), 40000, np.uint16))
    (folder / "torn.png").write_bytes((folder / "plain.png").read_bytes()[:900])
    (folder / "empty.png").touch()
    return folder


def test_plain_onnxruntime_equals_scan(trained, odd_images, run_cli, tmp_path):
    expected = scan(run_cli, odd_images, trained.model, tmp_path / "results")
    model = trained.model / "model.onnx"
    code, lines, messages = run_python(
        "plain_onnxruntime.py", model, *sorted(expected), "missing.png", cwd=odd_images, options=["-X", "importtime"]
    )
    assert code == 3
    assert " numpy\n" in messages
    assert not re.search(r"\| +inspectad", messages)
    assert lines.pop() == "UNREADABLE  missing.png"
    noise = 1e-4 * inspectad.Detector.load(model).threshold  # a training image lies at 0 but for rounding
    seen = {}
    for line in lines:
        verdict, *score, name = line.split("  ")
        seen[name] = (verdict, float(score[0]) if score else "")
    assert seen.keys() == expected.keys()
    for name, (verdict, score) in expected.items():
        assert seen[name][0] == verdict
        assert seen[name][1] == (pytest.approx(score, rel=1e-4, abs=noise) if score else "")
    assert {name for name, (verdict, _) in seen.items() if verdict == "UNREADABLE"} == {
        "16 bits.png",
        "empty.png",
        "torn.png",
    }
    assert seen["negative.png"][0] == "NG"
    assert seen["plain.png"][0] == "OK"


@pytest.mark.parametrize(("image", "expected"), [("plain.png", 0), ("torn.png", 4)])
def test_plain_onnxruntime_exit_codes(trained, odd_images, image, expected):
    assert run_python("plain_onnxruntime.py", trained.model / "model.onnx", image, cwd=odd_images)[0] == expected


def test_plain_onnxruntime_refuses_another_model(odd_images, tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"no model")
    code, lines, _ = run_python("plain_onnxruntime.py", tmp_path / "other.onnx", "plain.png", cwd=odd_images)
    assert (code, lines) == (1, [])


def test_camera_loop(trained, run_cli, tmp_path):
    camera = tmp_path / "camera"
    camera.mkdir()
    for number in range(3):
        (camera / f"{number}.png").write_bytes((trained.good / f"good_{number}.png").read_bytes())
    negative(trained.good / "good_3.png", camera / "1.png")
    expected = scan(run_cli, camera, trained.model, tmp_path / "results")
    code, lines, messages = run_python(
        "camera_loop.py", camera, "--model", trained.model, "--frames", 2, "--output", "ng", cwd=tmp_path
    )
    assert (code, messages) == (0, "")
    frames = [re.fullmatch(r"frame (\d+)  (OK|NG)  score (\S+)  severity \S+ +[\d.]+ ms(?:  (.*))?", x) for x in lines]
    assert [frame[1] for frame in frames[:2]] == ["000000", "000001"]
    for frame, name in zip(frames, ("0.png", "1.png"), strict=False):
        assert (frame[2], float(frame[3])) == (expected[name][0], pytest.approx(expected[name][1], abs=6e-4))
    assert (frames[0][2], frames[0][4]) == ("OK", None)
    assert (frames[1][2], frames[1][4]) == ("NG", os.path.join("ng", "000001.png"))
    assert re.fullmatch(r"2 frames, 1 NG, [\d.]+ ms a frame \(median\)", lines[2])
    assert os.listdir(tmp_path / "ng") == ["000001.png"]
    assert cv2.imread(str(tmp_path / "ng" / "000001.png")).shape == cv2.imread(str(camera / "1.png")).shape


@pytest.mark.parametrize("camera", ["99", "no such folder", "."])
def test_camera_loop_without_a_camera(trained, camera, tmp_path):
    code, lines, messages = run_python("camera_loop.py", camera, "--model", trained.model, cwd=tmp_path)
    assert (code, lines) == (1, [])
    assert "error: " in messages


@pytest.fixture
def line(trained, tmp_path):
    """A line's folder: two good parts, two defective ones and a torn file, under awkward names."""
    folder = tmp_path / "line 3"
    tray = folder / "incoming" / "tray 7"
    tray.mkdir(parents=True)
    (folder / "model").symlink_to(trained.model)
    (tray / "a part.png").write_bytes((trained.good / "good_0.png").read_bytes())
    (tray / "-f two\nlines.PNG").write_bytes((trained.good / "good_1.png").read_bytes())
    negative(trained.good / "good_2.png", tray / "-n 'bad'\nname\\.png")
    part = cv2.imread(str(trained.good / "good_3.png"))
    cv2.rectangle(part, (60, 50), (110, 90), (0, 0, 255), -1)
    cv2.imencode(".png", part)[1].tofile(folder / "incoming" / "painted.png")
    (tray / "torn.png").write_bytes((trained.good / "good_0.png").read_bytes()[:900])
    return folder


def run_line(folder, jq, tmp_path):
    """line.sh with this Python's inspectad and python3 first on the path."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name, module in (("inspectad", " -m inspectad"), ("python3", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{module} "$@"\n', encoding="utf-8")
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "JQ": jq}
    return subprocess.run(
        ["bash", EXAMPLES / "line.sh", folder], env=environment, capture_output=True, encoding="utf-8", timeout=100
    )


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("jq", ["jq", "none"])  # where there is no jq, both take the other way
def test_line_sh(line, jq, tmp_path):
    first = run_line(line, jq, tmp_path)
    assert first.returncode == 3, first.stderr
    (judged,) = (line / "judged").iterdir()
    rows = [json.loads(row) for row in (judged / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    rejected = sorted((r for r in rows if r["verdict"] == "NG"), key=lambda r: -r["severity"])
    assert len(rejected) == 2
    listed = [f"NG {r['severity']:.2f} {r['image'].removeprefix('incoming/')}\n" for r in rejected]
    assert first.stdout == "".join(listed) + f"judged/{judged.name}: 2 OK, 2 NG, 1 unreadable\n"
    assert below(judged / "NG") == ["painted.png", "tray 7/-n 'bad'\nname\\.png"]
    assert below(judged / "OK") == ["tray 7/-f two\nlines.PNG", "tray 7/a part.png"]
    assert below(line / "incoming") == ["tray 7/torn.png"]

    assert run_line(line, jq, tmp_path).returncode == 4
    (line / "incoming" / "tray 7" / "torn.png").unlink()
    nothing_new = run_line(line, jq, tmp_path)
    assert (nothing_new.returncode, nothing_new.stdout, nothing_new.stderr) == (0, "", "")


def test_line_sh_moves_nothing_at_an_error(line, tmp_path):
    (line / "model").unlink()
    before = below(line)
    done = run_line(line, "jq", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such model" in done.stderr
    assert below(line) == before


def test_line_sh_without_its_folder(tmp_path):
    done = run_line(tmp_path, "jq", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")


def test_solar_cells(tmp_path):
    code, lines, messages = run_python("solar_cells.py", "--good", 6, "--defects", 2, "--test", 12, cwd=tmp_path)
    assert code == 0, messages
    figures = dict(re.split("  +", line, maxsplit=1) for line in lines)
    assert list(figures) == ["trained on", "threshold", "image AUROC", "false rejects", "escapes", "seconds"]
    assert float(figures["image AUROC"]) > 0.6
    assert " of 12 (" in figures["false rejects"]
    assert " of 12 (" in figures["escapes"]
    folder = tmp_path / "solar_cells"
    images = [below(folder / f) for f in ("good", "defects", "test/good", "test/defects")]
    assert [len(names) for names in images] == [6, 2, 12, 12]
    assert len({name for names in images for name in names}) == 32  # nothing is both taught and tested
    assert run_python("solar_cells.py", cwd=tmp_path)[0] == 1  # never into a folder that is there


def test_elpv_protocol(tmp_path):
    code, lines, messages = run_python("elpv_protocol.py", cwd=tmp_path)
    assert code == 0, messages
    counts = {"train/good": 1131, "test/good": 377, "test/defect": 715}
    assert {place.removeprefix("elpv/"): int(count) for place, count in map(str.split, lines)} == counts
    images = {place: set(below(tmp_path / "elpv" / place)) for place in counts}
    assert {place: len(names) for place, names in images.items()} == counts
    assert len(set().union(*images.values())) == sum(counts.values())
    assert run_python("elpv_protocol.py", cwd=tmp_path)[0] == 1  # never into a folder that is there


def test_elpv_protocol_splits_as_scikit_learn(monkeypatch):
    from sklearn.model_selection import train_test_split

    monkeypatch.syspath_prepend(EXAMPLES)
    from elpv_protocol import split

    good = np.arange(1508) * 3
    theirs = train_test_split(good, test_size=0.25, random_state=42)
    for ours, expected in zip(split(good), theirs, strict=True):
        assert np.array_equal(ours, np.sort(expected))


def test_large_plate_finds_the_scratch_in_tiles(tmp_path):
    options = ("--width", 1200, "--good", 3, "--output", "plates")
    code, lines, messages = run_python("large_plate.py", *options, cwd=tmp_path)
    assert code == 0, messages
    x, y, width, height = map(int, lines[0].split()[1:])
    good, scratched = (line for line in lines if line.startswith("tiles ") and ".png" in line)
    assert " OK " in good
    assert " NG " in scratched
    found = np.array(scratched.split("threshold")[1].split(";")[0].split(), int)
    assert np.abs(found - (x, y, width, height)).max() <= 60
    assert (tmp_path / "plates/results_tiles/heatmaps/scratch.png.png").exists()


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    """Pictures of 28 x 28 pixels: class 4 brighter to the right, class 9 to the left, with noise."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(20, 220, 28)[None, :]
    arrays = {}
    for name, count in (("train", 6), ("test", 8)):
        labels = np.tile([4, 9], count // 2)
        pictures = np.where(labels[:, None, None] == 4, ramp, ramp[:, ::-1]) + rng.normal(0, 8, (count, 28, 28))
        arrays |= {f"x_{name}": pictures.clip(0, 255).astype(np.uint8), f"y_{name}": labels}
    path = tmp_path_factory.mktemp("classes") / "two.npz"
    np.savez(path, **arrays)
    return path


def test_one_shot_classes(two_classes, tmp_path):
    options = ("--classes", 4, "--parts", "coarsest_scale", "--draws", 2, "--steps", 1, "--jobs", 2, "--device", "cpu")
    code, lines, messages = run_python(
        "one_shot_classes.py", two_classes, *options, "--threads", 1, "--json", "out.json", cwd=tmp_path
    )
    assert code == 0, messages
    assert "steps           1" in lines
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["settings"]["resize"] == "64 x 64, bicubic, antialiased, rounded to 8 bits"
    results = sorted(told["results"], key=lambda r: r["draw"])
    assert [(r["label"], r["draw"], r["part"]) for r in results] == [(4, 0, "coarsest_scale"), (4, 1, "coarsest_scale")]
    places = np.array([0, 2, 4])  # of class 4
    drawn = [int(places[np.random.default_rng(draw).permutation(3)[0]]) for draw in (0, 1)]
    assert [r["images"] for r in results] == [[place] for place in drawn]
    figures = [100 * r["auroc"] for r in results]
    mean = f"coarsest_scale      4     2  {np.mean(figures):.1f} ± {np.std(figures, ddof=1):.1f}"
    assert mean in lines


def test_prototype_classes(two_classes, tmp_path):
    options = ("--classes", 4, "--draws", 1, "--init", "pretrained", "--epochs", 1, "--device", "cpu")
    code, lines, messages = run_python(
        "prototype_classes.py", two_classes, *options, "--json", "out.json", cwd=tmp_path
    )
    assert code == 0, messages
    (told,) = json.loads((tmp_path / "out.json").read_text())
    assert (told["label"], told["draw"], told["normals"]) == (4, 0, 3)
    with np.load(two_classes) as arrays:
        train, test = (arrays[name].reshape(len(arrays[name]), -1).astype(float) for name in ("x_train", "x_test"))
        is_other = arrays["y_test"] != 4
        good = train[arrays["y_train"] == 4]
    nearest = np.sqrt(((test[:, None] - good[None]) ** 2).sum(axis=2)).min(axis=1)
    pairs = nearest[is_other][:, None] - nearest[~is_other][None]
    assert told["aurocs"]["pixels"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-6)
    assert f"    4 all             {100 * told['aurocs']['all']:.1f} ± nan" in lines


def test_two_stage_ablation(tmp_path):
    side, folder = 64, tmp_path / "parts"
    for place, kind, seeds in (
        ("train/good", None, range(5)),
        ("test/good", None, range(5, 7)),
        ("test/scratch", "scratch", range(60, 62)),
    ):
        for seed in seeds:
            drawn = render_part(seed, kind, (128, 128))
            write_png(folder / place / f"{seed}.png", drawn.image)
            if kind:
                write_png(folder / "ground_truth" / kind / f"{seed}_mask.png", 255 * (drawn.mask > 0).astype(np.uint8))
    options = ("--size", side, "--steps", 1, "--device", "cpu", "--threads", 1, "--json", "out.json")
    code, lines, messages = run_python("two_stage_ablation.py", folder, *options, cwd=tmp_path)
    assert code == 0, messages
    told = json.loads((tmp_path / "out.json").read_text())
    rows = {line[:22].strip(): line[22:].split() for line in lines}
    for name, figures in told["figures"].items():
        assert rows[name] == [f"{figure:.3f}" for figure in figures]
        assert all(0 <= figure <= 1 for figure in figures)
    assert len(told["figures"]) == 8
    assert told["figures"]["memory bank"][0] == 1
    # A black square is as far from the clean image as that is from black.
    squares = []
    for number, seed in enumerate((5, 6)):
        clean = cv2.resize(render_part(seed, None, (128, 128)).image, (side, side), interpolation=cv2.INTER_AREA) / 255
        y, x = np.random.default_rng(number).integers(side // 4, 3 * side // 4 - 6, 2)
        squares.append((clean[y : y + 6, x : x + 6] ** 2).mean())
    black = -10 * np.log10(np.mean(squares))
    assert told["psnr"]["inside a pasted square, the square itself"] == pytest.approx(black, abs=1e-3)


def test_one_shot_classes_refuses_what_is_not_there(two_classes, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import one_shot_classes

    monkeypatch.setattr(sys, "argv", ["one_shot_classes.py", str(two_classes), "--classes", "5"])
    with pytest.raises(SystemExit, match=r"there are the classes \[4, 9\]"):
        one_shot_classes.main()


def test_one_shot_classes_measures_as_scikit_learn_and_resizes_as_pillow(monkeypatch):
    from sklearn.metrics import roc_auc_score

    monkeypatch.syspath_prepend(EXAMPLES)
    from one_shot_classes import auroc, resized

    rng = np.random.default_rng(1)
    scores, is_other = rng.integers(0, 9, 60).astype(float), rng.integers(0, 2, 60).astype(bool)  # with many ties
    assert auroc(scores, is_other) == pytest.approx(roc_auc_score(is_other, scores), abs=1e-12)
    for shape in ((2, 28, 28), (2, 100, 90, 3)):
        pictures = rng.integers(90, 160, shape, dtype=np.uint8)  # Pillow clips what overshoots after each of two passes
        ours = resized(pictures)
        theirs = [
            np.asarray(Image.fromarray(p).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")) for p in pictures
        ]
        assert ours.shape == (2, 64, 64, 3)
        assert np.abs(ours.astype(int) - np.stack(theirs)).max() <= 2  # and rounds there
