"""Images that kill the process which decodes them: it is replaced, and they get a row that says so."""

import csv
import dataclasses
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ray_helpers import BAD, Doomed, Endless, Failing, Poisoned, Unborn

from inspectad.errors import InspectadError, ModelFileError
from inspectad.ray_engine.child import Child
from inspectad.ray_engine.inspector import Inspector
from inspectad.ray_engine.job import Found, Job
from inspectad.ray_engine.place import Place
from inspectad.ray_engine.supervised import Supervised
from inspectad.results import COLUMNS

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(trained, tmp_path: Path) -> MakeJob:
    def make(model: bytes = (trained.model / "model.onnx").read_bytes(), output: str = str(tmp_path / "out")) -> Job:
        return Job(
            model=model,
            device="cpu",
            workers=1,
            root=Place(str(trained.good)),
            output=Place(output),
            marker="",
            kind="csv",
            heatmaps="all",
            maps=False,
            threshold=None,
            tile=None,
        )

    return make


def rows(found: list[Found]) -> list[dict[str, str]]:
    lines = csv.reader(io.StringIO(b"".join(f.record for f in found).decode(), newline=""))
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines]


def names(folder: Path, *more: str) -> list[bytes]:
    return [*(p.name.encode() for p in sorted(folder.iterdir())), *(m.encode() for m in more)]


def test_a_child_inspects_as_the_process_itself_does(trained, make_job: MakeJob) -> None:
    job = make_job()
    wanted = names(trained.good, "missing.png")
    with Supervised(job, "0" * 12) as supervised:
        found = rows(supervised.inspect(wanted))
        again = rows(supervised.inspect(wanted[:1]))  # the same child
    itself = rows(Inspector(job).inspect(wanted))
    for row in (*found, *itself, *again):
        row.pop("elapsed_ms")
    assert found == itself
    assert again == itself[:1]
    assert [r["verdict"] for r in found] == ["OK"] * 6 + ["UNREADABLE"]
    assert sorted(p.name for p in (job.output.path / "heatmaps").iterdir()) == [f"good_{i}.png.png" for i in range(6)]


@pytest.mark.parametrize(
    ("opened", "why"),
    [
        (Poisoned, "the process that decoded it died (signal 11, SIGSEGV); look at this file"),
        (Failing, "inspecting it failed (RuntimeError: a bug, in two lines); look at this file"),
    ],
)
def test_one_bad_image_costs_the_others_nothing(trained, make_job: MakeJob, opened: type, why: str) -> None:
    good = names(trained.good)
    with Supervised(make_job(), "0123456789ab", opened) as supervised:
        found = rows(supervised.inspect([good[0], f"{BAD}.png".encode(), *good[1:]]))
        later = rows(supervised.inspect(good[:2]))
    assert [r["image"].encode() for r in found] == [good[0], f"{BAD}.png".encode(), *good[1:]]
    assert [r["verdict"] for r in found] == ["OK", "UNREADABLE", *["OK"] * 5]
    assert found[1]["error"] == why
    assert found[1]["model"] == "0123456789ab"
    assert [r["verdict"] for r in later] == ["OK", "OK"]


def test_what_is_not_the_images_fault_is_an_error(trained, make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"damaged|not an ONNX model"):
        Supervised(make_job(model=b"nonsense"), "")
    (tmp_path / "file").write_bytes(b"")
    with (
        Supervised(make_job(output=str(tmp_path / "file" / "out")), "") as supervised,
        pytest.raises(InspectadError, match="cannot be written"),
    ):
        supervised.inspect(names(trained.good))
    with pytest.raises(InspectadError, match=r"cannot start on .*exit code 7"):
        Supervised(make_job(), "", Unborn)


def test_where_all_images_kill_it_the_images_are_not_to_blame(
    trained, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectad.ray_engine.supervised.MOST_FAILURES", 2)
    with (
        Supervised(make_job(), "", Doomed) as supervised,
        pytest.raises(InspectadError, match=r"2 images in a row failed on .*exit code 9.*machine is broken"),
    ):
        supervised.inspect(names(trained.good))


def test_an_image_that_never_ends_costs_one_row(trained, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is short while it inspects, not while a child starts: how long that takes is the machine's affair."""
    inspect = Child.inspect

    def impatient(child: Child, asked: Sequence[bytes]) -> list[Found]:
        with monkeypatch.context() as short:
            short.setattr("inspectad.ray_engine.child._ANSWER_S", 1.0)
            return inspect(child, asked)

    monkeypatch.setattr(Child, "inspect", impatient)
    with Supervised(make_job(), "", Endless) as supervised:
        (row,) = rows(supervised.inspect([f"{BAD}.png".encode()]))
    assert row["verdict"] == "UNREADABLE"
    assert row["error"] == "the process that decoded it died (no answer within 1 s); look at this file"


def test_a_child_ends_with_its_parent(make_job: MakeJob, tmp_path: Path) -> None:
    """As when Ray kills a worker: nobody is left to tell the child."""
    code = (
        "import os, pickle, sys\nfrom inspectad.ray_engine.child import Child\n"
        "from inspectad.ray_engine.inspector import Inspector\n"
        f"child = Child(Inspector, pickle.load(open({str(tmp_path / 'job')!r}, 'rb')))\n"
        "print(child._process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    (tmp_path / "job").write_bytes(pickle.dumps(make_job()))
    # The child holds the pipe of standard error: this returns when it is gone too.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == -9
    assert int(done.stdout) > 0


def test_settings_of_the_user_reach_the_child(make_job: MakeJob) -> None:
    job = dataclasses.replace(make_job(), environment={"INSPECTAD_SOMETHING": "800"})
    child = Child(Inspector, job)
    environment = Path(f"/proc/{child._process.pid}/environ").read_bytes().split(b"\0")
    child.close()
    assert b"INSPECTAD_SOMETHING=800" in environment


def test_the_child_is_gone_after_close(make_job: MakeJob) -> None:
    child = Child(Inspector, make_job())
    child.close()
    assert child._process.returncode == -9
