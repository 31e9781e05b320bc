"""Which images a job has, and what they are called: as the local engine says, on disks and in object stores."""

import os
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspectad.errors import InspectadError, MissingDependencyError, UsageError
from inspectad.image_files import RESULTS_MARKER, expand_arguments
from inspectad.ray_engine.listing import Root, chunks, find_roots, path_of, walk
from inspectad.ray_engine.place import Place, absolute

FILES = (
    "a.png",
    "b.txt",
    ".hidden.png",
    "cam1/000.JPG",
    "cam1/Größe 3 µm.png",
    "cam1/deep/er/x.tiff",
    "cam2/000.JPG",
    "cam2/.git/y.png",
    "old/" + RESULTS_MARKER,
    "old/heatmaps/a.png.png",
    "out/heatmaps/a.png.png",
    "old2/rows.png",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    return tmp_path / "in"


@pytest.fixture
def stored() -> str:
    """The same files in an object store: fsspec's own, in memory."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    for name in FILES:
        memory.pipe_file(f"/in/{name}", name.encode())
    return "memory:///in"


def listed(arguments: list[str], output: str) -> dict[str, bytes]:
    """Names to what their files hold, as a job finds and reads them."""
    place = Place(absolute(output))
    root = find_roots([absolute(a) for a in arguments], place)
    names = [n for folder in root.folders for n in walk(folder, root.place, place)] + list(root.files)
    assert len(set(names)) == len(names)
    return {os.fsdecode(n): path_of(root.place, n).read() for n in names}


def local(arguments: list[str], output: Path) -> dict[str, bytes]:
    return {f.name: f.path.read_bytes() for f in expand_arguments(arguments, exclude=output)}


ARGUMENTS = (
    [""],
    ["/cam1"],
    ["/cam1", "/cam2"],
    ["/cam*"],
    ["/cam1/000.JPG", "/a.png"],
    ["/cam*/000.JPG"],
    ["/cam1", "/cam1/000.JPG", "/cam1/deep"],
    ["/a.png"],
)


@pytest.mark.parametrize("below", ARGUMENTS)
def test_the_same_images_and_names_as_the_local_engine(folder: Path, stored: str, below: list[str]) -> None:
    expected = local([f"{folder}{b}" for b in below], folder / "out")
    assert expected
    assert listed([f"{folder}{b}" for b in below], str(folder / "out")) == expected
    assert listed([f"file://{folder}{b}" for b in below], f"file://{folder}/out") == expected
    assert listed([f"{stored}{b}" for b in below], f"{stored}/out") == expected


def test_links_are_followed_and_odd_bytes_kept(folder: Path) -> None:
    (folder / "cam1" / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(folder / "old2")
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(b"latin")
    expected = local([str(folder)], folder / "out")
    assert os.fsdecode(b"caf\xe9.png") in expected
    assert listed([str(folder)], str(folder / "out")) == expected


def test_names_in_a_store_cannot_lead_out_of_the_output(stored: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.store["/in/../../evil.png"] = memory.store["/in/a.png"]
    memory.store["/in/cam1/../../evil.png"] = memory.store["/in/a.png"]
    assert not any(".." in name for name in listed([stored], f"{stored}/out"))
    for argument in ("cam1/../../evil.png", "*/../../evil.png"):
        with pytest.raises(UsageError, match=r"with \.\. in it|no such file"):
            listed([f"{stored}/a.png", f"{stored}/{argument}"], f"{stored}/out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory:///nothing"], "no such file or folder"),
        (["memory:///in/*.gif"], "no such file or folder"),
        (["memory:///in", "s3://in"], "one store at a time"),
        (["nosuch://in"], "nosuch://in: .*for instance s3://bucket/folder"),
        (["/no/such/folder"], "no such file or folder"),
        (["memory:///in/out"], "both input and output"),
    ],
)
def test_what_cannot_be_listed_is_said(stored: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        listed(arguments, f"{stored}/out")


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "adlfs", None)
    with pytest.raises(MissingDependencyError, match=r"abfs://c/x: Install adlfs .*all machines"):
        listed(["abfs://c/x"], "out")


def test_a_store_that_fails_is_no_empty_folder(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = find_roots([stored], Place("/out"))
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "ls", lambda *_a, **_k: (_ for _ in ()).throw(OSError("no route to it")))
    with pytest.raises(InspectadError, match=r"cannot be listed .*no route to it"):
        list(walk(root.folders[0], root.place, Place("/out")))


@given(st.lists(st.integers(0, 50), unique=True), st.integers(1, 7), st.sets(st.integers(0, 50)))
def test_chunks_hold_each_missing_name_once(numbers: list[int], size: int, done: set[int]) -> None:
    found = list(chunks((str(n).encode() for n in numbers), size, frozenset(map(str, done))))
    assert [int(n) for chunk in found for n in chunk] == [n for n in numbers if n not in done]
    assert all(len(chunk) == size for chunk in found[:-1])
    assert all(found)


def test_roots_are_small(folder: Path) -> None:
    """What passes the driver of a folder is the folder."""
    assert find_roots([str(folder)], Place("/out")) == Root(Place(str(folder)), (Place(str(folder)),), ())
