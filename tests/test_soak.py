"""`benchmark soak`: real scans pass it, and stand-ins that leak, lose, double, tear or hang do not."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Trained, write_png

from inspectad.benchmark import soak_records
from inspectad.benchmark.soak import SoakResult, check
from inspectad.benchmark.soak_images import Mix
from inspectad.benchmark.soak_ledger import DOUBLED, HEATMAP, LOST, UNEQUAL, UNKNOWN
from inspectad.benchmark.soak_process import Folders, soak
from inspectad.benchmark.soak_records import Sample, SoakRun, promises
from inspectad.demo_part import render_part
from inspectad.errors import InspectadError
from inspectad.progress import silent
from inspectad.results import CSV_HEADER

COUNT = 1_500

STAND_IN = """
# A scan that judges by the size of a file, and misbehaves as its first argument says.
import os, signal, sys, time
from pathlib import Path
fault, images, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
HEADER, PNG = {header!r}, {png!r}
kept = []
rows = (output / "results.csv").open("wb", buffering=0)

def send(line):
    rows.write(line)
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()

send(HEADER)

def be_read():
    # The soak takes heatmaps away when it has read their rows.
    until = time.monotonic() + 60
    while time.monotonic() < until and any((output / "heatmaps").glob("*/*.png")):
        time.sleep(0.05)

names = [f"{{path.parent.name}}/{{path.name}}" for path in sorted(images.glob("*/*"))]
for i, name in enumerate(names):
    score = float(os.stat(images / name).st_size)
    if i == 1100:
        be_read()
    if fault == "leaks" and i > 1100:
        kept.append((bytearray(b"x" * 200_000), open(images / name, "rb")))
    if fault == "hangs" and i == 1200:
        time.sleep(600)
    if fault == "crashes" and i == 1200:
        be_read()
        sys.exit("out of luck")
    odd = i if fault == "wrong rows" else 0
    if odd == 1201:
        continue
    heatmap = output / "heatmaps" / f"{{name}}.png"
    heatmap.parent.mkdir(parents=True, exist_ok=True)
    if odd != 1202:
        heatmap.write_bytes(PNG[: -5 if odd == 1203 else None])
    if odd == 1204:
        score *= 1.01
    row = f"{{name}},OK,{{score}},9.0,1.0,0,,1,1,2.0,0123456789ab,\\n".encode()
    send(row)
    if odd == 1205:
        send(row)
    if odd == 1206:
        send(row.replace(name.encode(), b"00001/99999999.png"))
be_read()
if fault == "leaves files":
    (output / "heatmaps").mkdir(exist_ok=True)
    (output / "heatmaps" / ".inspectad-1.tmp").write_bytes(b"1")
    (Path(os.environ["TMPDIR"]) / "cache").write_bytes(b"1")
if fault == "tells two stories":
    rows.write(b"\\n")
"""

FAULTS = {
    "none": [],
    "leaks": ["memory", "open files"],
    "wrong rows": ["rows", LOST, DOUBLED, UNKNOWN, UNEQUAL, HEATMAP],
    "leaves files": ["left beside the rows"],
    "tells two stories": ["its end"],
    "crashes": ["rows", LOST, "its end"],
    "hangs": ["rows", LOST, "its end"],
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SoakRun]:
    root = tmp_path_factory.mktemp("soak")
    sources = tuple(write_png(root / "in" / f"{i}.png", render_part(i, None, (96, 96 + i)).image) for i in range(3))
    program = STAND_IN.format(header=CSV_HEADER, png=sources[0].read_bytes())
    (root / "scan.py").write_text(program)
    mix = Mix(sources, (), COUNT)

    def run(fault: str) -> SoakRun:
        work = root / fault
        folders = Folders(work / "images", work / "results", work / "tmp")
        command = [sys.executable, str(root / "scan.py"), fault, str(folders.images), str(folders.output)]
        return soak(command, mix, folders, silent, watch=False, patience_s=5 if fault == "hangs" else 120)

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_breaks_its_promise_and_no_other(fault: str, stand_in: Callable[[str], SoakRun]) -> None:
    run = stand_in(fault)
    pace = "processor time an image"  # of a stand-in that does nothing: noise
    broken = [p.what for p in promises(run) if not p.kept and p.what != pace]
    assert sorted(broken) == sorted(FAULTS[fault])
    if fault == "wrong rows":
        assert dict(run.wrong) == {LOST: 1, DOUBLED: 1, UNKNOWN: 1, UNEQUAL: 1, HEATMAP: 2}
        assert run.examples[LOST] == "00001/00001201.png"
    if fault == "leaves files":
        assert run.ending.left == ("results/heatmaps/.inspectad-1.tmp", "tmp/cache")
    if fault == "crashes":
        assert run.ending.problem == "exit code 1 instead of 0; it said: out of luck"
    if fault == "hangs":
        assert run.ending.problem == "no row for 5 s, so it was killed"


def sample(images: int, **others: float) -> Sample:
    usual = {"seconds": images / 100, "core_s": images / 200, "rss": 10**8, "uss": 10**8, "handles": 5, "threads": 6}
    return Sample(images=images, **{**usual, "disk": 0, **others})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("late", "broken"),
    [
        ({}, []),
        ({"rss": 149 * 10**6}, []),
        ({"rss": 151 * 10**6}, ["memory"]),
        ({"handles": 22}, ["open files"]),
        ({"threads": 11}, ["threads"]),
        ({"disk": 101 * 10**6}, ["temporary disk"]),
    ],
)
def test_what_rises_after_the_first_thousand_is_judged(late: dict[str, float], broken: list[str]) -> None:
    samples = [sample(i) for i in range(0, 20_001, 100)]
    samples[150] = sample(15_000, **late)
    assert [p.what for p in promises(a_run(samples)) if not p.kept] == broken
    samples[5], samples[150] = sample(500, **late), sample(15_000, **late)  # it was that high before
    assert [p.what for p in promises(a_run(samples)) if not p.kept] == []


def test_a_scan_that_takes_ever_longer_is_found_out() -> None:
    samples = [sample(i, core_s=i / 200 + (i / 1_000) ** 2) for i in range(0, 20_001, 100)]
    assert [p.what for p in promises(a_run(samples)) if not p.kept] == ["processor time an image"]
    first, last = soak_records.paces(samples) or pytest.fail("too few")
    assert first.core_ms == pytest.approx(5 + 1000 * (5_800**2 - 1_100**2) / 1_000**2 / 4_700)
    assert first.images_per_s == last.images_per_s == pytest.approx(100)


def test_growth_is_fitted() -> None:
    assert soak_records.slope([sample(i, rss=7 * i + 3) for i in range(0, 5_000, 50)]) == pytest.approx(7)


def a_run(samples: list[Sample]) -> SoakRun:
    ending = soak_records.Ending("", 0.1, ())
    return SoakRun(20_000, 20_000, {"OK": 20_000}, {}, {}, tuple(samples), ending)


def test_numbers_and_names_belong_together(tmp_path: Path) -> None:
    usual, odd = (tmp_path / "a.png", tmp_path / "b.jpg"), (tmp_path / "c.tif",)
    mix = Mix(usual, odd, 2_500)
    names = [mix.name(i) for i in range(2_500)]
    assert [mix.number(name) for name in names] == list(range(2_500))
    assert names[0] == "00000/00000000.png"
    assert names[1_009] == "00001/00001009.tif"
    assert [mix.number(name) for name in ("00000/00000000.jpg", "00002/00002500.png", "x.png", "")] == [None] * 4


@pytest.fixture
def soaked(trained: Trained, tmp_path: Path, run_cli) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    def run(*more: object) -> "subprocess.CompletedProcess[str]":
        arguments = ("-m", trained.model, "-o", tmp_path / "out", "--device", "cpu", *more)
        return run_cli("benchmark", "soak", *arguments)

    return run


@pytest.mark.parametrize("watch", [[], ["--watch"]], ids=["scan", "watch"])
def test_real_scans_pass(soaked, tmp_path: Path, watch: list[str]) -> None:
    done = soaked("--images", 2_000, *watch)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "soak.json").read_text())
    assert all(p["kept"] for p in report["promises"])
    assert "120 UNREADABLE" in report["figures"]["verdicts"]  # 6 of 10 odd ones, which are one in ten
    assert report["samples"]["images"][-1] > 1_500  # how near the end the last one lies depends on the machine
    assert (tmp_path / "out" / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        ".inspectad-results", "soak.json", "soak.md", "soak.png",
    ]  # fmt: skip
    assert done.stdout == (tmp_path / "out" / "soak.md").read_text()


def test_a_broken_promise_is_an_error_with_a_sentence() -> None:
    samples = [sample(i, rss=10**8 + 10_000 * i) for i in range(0, 20_001, 100)]
    run = a_run(samples)
    with pytest.raises(InspectadError) as raised:
        check(SoakResult(run, promises(run), "", (), ()))
    assert raised.value.exit_code == 1
    assert str(raised.value) == (
        "the soak failed: memory: 110 MB at most until then, 300 MB afterwards; "
        "promised: 50 MB more after the first 1000 images"
    )


def test_without_psutil_the_command_says_how_to_get_it(run_cli, tmp_path: Path) -> None:
    missing = textwrap.dedent("""
        import importlib.util as util
        find = util.find_spec
        util.find_spec = lambda name, *a: None if name == "psutil" else find(name, *a)
    """)
    done = run_cli("benchmark", "soak", "-o", tmp_path / "out", prelude=missing)
    assert done.returncode == 1
    assert 'pip install "inspectad[benchmark]"' in done.stderr
    assert not (tmp_path / "out").exists()
