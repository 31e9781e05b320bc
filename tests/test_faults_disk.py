"""A disk that is full, or read-only, at any moment of writing."""

import csv
import errno
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunCli, Trained, cli_environment, command_line

from inspectad.atomic import write_together
from inspectad.detector import OnnxDetector
from inspectad.errors import OutputError
from inspectad.results import COLUMNS, FORMATS
from inspectad.scan import ScanConfig, scan

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """Fails at one of the calls by which files below a folder come to be, are renamed or removed.

    Python tells an audit hook of each such call beforehand, and an error of the hook is that of the call. A hook cannot
    be taken away again, so this one sleeps between tests.
    """

    def __init__(self) -> None:
        self.folder = ""
        self.calls = 0
        self.fails_at = 0
        self.code = 0
        sys.addaudithook(self._hear)

    def fail(self, folder: Path, at: int, code: int) -> None:
        self.folder, self.calls, self.fails_at, self.code = str(folder), 0, at, code

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.folder or event not in ("open", "os.mkdir", "os.rename", "os.remove"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        if str(arguments[0]).startswith(self.folder):
            self.calls += 1
            if self.calls == self.fails_at:
                raise OSError(self.code, os.strerror(self.code), str(arguments[0]))


@pytest.fixture(scope="module")
def the_disk() -> Disk:
    return Disk()


@pytest.fixture
def disk(the_disk: Disk) -> Iterator[Disk]:
    yield the_disk
    the_disk.folder = ""


def rows_in(output: Path) -> list[dict[str, str]]:
    path = output / "results.csv"
    if not path.exists():
        return []
    data = path.read_bytes()
    assert data.endswith(b"\n"), "a torn row"
    found = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert all(len(row) == len(COLUMNS) for row in found)
    return [{k: v for k, v in zip(COLUMNS, row, strict=True) if k != "elapsed_ms"} for row in found[1:]]


def pictures_in(output: Path) -> dict[str, bytes]:
    return {
        p.relative_to(output).as_posix(): p.read_bytes()
        for folder in ("heatmaps", "maps")
        for p in (output / folder).rglob("*")
        if p.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.name.endswith(".tmp") or p.name == ".inspectad-lock"]


@pytest.mark.parametrize(
    ("code", "is_there"), [(errno.ENOSPC, False), (errno.EROFS, True)], ids=["new", "over an earlier scan"]
)
def test_a_scan_that_cannot_write_at_any_one_call_tears_nothing_and_goes_on_later(
    trained: Trained, tmp_path: Path, disk: Disk, code: int, is_there: bool
) -> None:
    detector = OnnxDetector.load(trained.model, "cpu", threads=1)

    def run(output: Path, **options: object) -> None:
        images = (str(trained.defects),)
        scan(ScanConfig(images=images, output=output, heatmaps="all", maps=True, workers=1, **options), detector)

    run(tmp_path / "whole")
    expected = rows_in(tmp_path / "whole")
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*"))
    output, at, said = tmp_path / "out", 0, []
    while True:
        at += 1
        shutil.rmtree(output, ignore_errors=True)
        if is_there:
            shutil.copytree(tmp_path / "whole", output)
        disk.fail(output, at, code)
        try:
            run(output)
        except OutputError as error:
            said.append(str(error))
        is_through = disk.calls < at
        disk.fail(Path("/nowhere"), 0, 0)
        assert [row in expected for row in rows_in(output)] == [True] * len(rows_in(output))
        for row in rows_in(output):
            assert {f"heatmaps/{row['image']}.png", f"maps/{row['image']}.tiff"} <= pictures_in(output).keys()
        assert pictures_in(output).items() <= pictures_in(tmp_path / "whole").items()
        run(output, resume=True)
        assert rows_in(output) == expected
        assert pictures_in(output) == pictures_in(tmp_path / "whole")
        assert sorted(p.relative_to(output) for p in output.rglob("*")) == names
        if is_through:
            break
    assert len(said) >= (12 if is_there else 10)
    assert all(f"cannot be written ({os.strerror(code)})" in text and str(output) in text for text in said)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_files_that_belong_together_are_all_old_or_all_new(tmp_path: Path, disk: Disk, code: int) -> None:
    """Models, exports, tables of the benchmark: each is written by this."""
    folder = tmp_path / "model"
    old = {folder / name: b"old" for name in ("a", "b", "c")}
    new = dict.fromkeys(old, b"new")
    outcomes, at, said = set(), 0, []
    while True:
        at += 1
        write_together(old)
        disk.fail(folder, at, code)
        try:
            write_together(new, durable=True)
        except OutputError as error:
            said.append(str(error))
        is_through = disk.calls < at
        disk.fail(Path("/nowhere"), 0, 0)
        found = {p: p.read_bytes() for p in folder.iterdir()}
        assert found in (old, new)
        outcomes.add(found == new)
        if is_through:
            break
    assert outcomes == {True, False}
    assert len(said) >= 6
    assert all(os.strerror(code) in text for text in said)


# --- a real file system, of a real size ---

MOUNT = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]


@pytest.fixture(scope="module")
def can_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mount")
    try:
        script = f"mount -t tmpfs -o size=64k none {folder}"
        subprocess.run([*MOUNT, script], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no small file system can be mounted here (it needs user namespaces)")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("kilobytes", [12, 100, 200])
def test_a_scan_that_fills_its_disk_goes_on_when_there_is_space(
    can_mount: None, trained: Trained, tmp_path: Path, kilobytes: int, kind: str
) -> None:
    arguments = command_line(
        "scan", trained.good, "-m", trained.model, "-o", tmp_path / "small" / "out",
        "--heatmaps", "--maps", "--device", "cpu", "--format", kind,
    )  # fmt: skip
    (tmp_path / "small").mkdir()
    script = f"""
        mount -t tmpfs -o size={kilobytes}k none {tmp_path}/small
        "$@" >/dev/null 2>{tmp_path}/stderr && exit 9
        echo $? >{tmp_path}/code
        cp -a {tmp_path}/small/out {tmp_path}/full
        mount -o remount,size=50m {tmp_path}/small
        "$@" --resume >/dev/null 2>&1
        cp -a {tmp_path}/small/out {tmp_path}/whole
    """
    done = subprocess.run([*MOUNT, script, "sh", *arguments], env=cli_environment(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "code").read_text() == "1\n"
    said = (tmp_path / "stderr").read_text().splitlines()
    assert said[-1].startswith(f"error: {tmp_path}/small/out")
    assert "cannot be written (No space left on device); free some space" in said[-1]
    assert leftovers(tmp_path / "full") == []
    assert leftovers(tmp_path / "whole") == []
    rows = (tmp_path / "full" / f"results.{kind}").read_bytes() if kilobytes > 12 else b""
    assert rows == b"" or rows.endswith(b"\n")
    whole = (tmp_path / "whole" / f"results.{kind}").read_bytes()
    assert whole.startswith(rows)
    assert whole.count(b"good_") == 6
    made = pictures_in(tmp_path / "whole")
    assert len(made) == 12
    assert pictures_in(tmp_path / "full").items() <= made.items()


# --- what goes to standard output ---


@pytest.mark.parametrize("verb", ["info", "evaluate"])
def test_a_full_disk_behind_standard_output_is_one_clear_line(trained: Trained, verb: str) -> None:
    folders = [trained.good, trained.defects] if verb == "evaluate" else []
    command = command_line(verb, *folders, "-m", trained.model, "--json")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, env=cli_environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: standard output or a temporary file: cannot be written (No space left on device)" in done.stderr


# --- what a power cut leaves ---


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("at", ["end", "middle", "start"])
def test_zeros_that_a_power_cut_left_in_the_rows_do_not_stop_resume(
    trained: Trained, tmp_path: Path, run_cli: RunCli, kind: str, at: str
) -> None:
    options = ("-m", trained.model, "-o", tmp_path / "out", "--device", "cpu", "--format", kind)
    assert run_cli("scan", trained.good, *options).returncode == 0
    path = tmp_path / "out" / f"results.{kind}"
    data = path.read_bytes()
    third, fifth = data.index(b"good_2"), data.index(b"good_4")
    begin, end = {"end": (fifth, len(data)), "middle": (third, fifth), "start": (0, fifth)}[at]
    path.write_bytes(data[:begin] + bytes(end - begin) + data[end:])
    done = run_cli("scan", trained.good, *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes().count(b"good_%d" % i) for i in range(6)] == [1] * 6
    assert b"\0" not in path.read_bytes()
