"""Which files are found and what they are called, against listings made by hand."""

import io
import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectad.errors import InspectadError, UsageError
from inspectad.image_files import (
    IMAGE_SUFFIXES,
    OUTSIDE,
    common_root,
    expand_arguments,
    find_images,
    read_path_list,
    relative_name,
)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def names_in(folder: Path, exclude: Path | None = None) -> list[str]:
    return [f.name for f in find_images(folder, *([exclude] if exclude else []))]


def test_subfolders_are_entered_and_names_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/c.png", "a.png", "a/a/z.jpg", "B.png", "a-1.png")
    assert names_in(tmp_path) == ["B.png", "a-1.png", "a.png", "a/a/z.jpg", "a/c.png", "b.png"]


def test_each_image_is_where_its_name_says(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.png", "c.png")
    assert [(f.path, f.name) for f in find_images(tmp_path)] == [
        (tmp_path / "a" / "b.png", "a/b.png"),
        (tmp_path / "c.png", "c.png"),
    ]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "._a.png", ".hidden/b.png", "sub/.c.png", "sub/d.png", ".png")
    assert names_in(tmp_path) == ["sub/d.png"]


def test_suffixes_count_in_any_case_and_others_do_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.PNG", "b.JpEg", "c.Tif", "d.txt", "e.png.bak", "png", "f.csv", "g.gif")
    assert names_in(tmp_path) == ["a.PNG", "b.JpEg", "c.Tif"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"])
def test_usual_suffixes_are_images(suffix: str) -> None:
    assert suffix in IMAGE_SUFFIXES


@pytest.mark.parametrize(
    "name", ["a b.png", "Gehäuse Ø 12 部品.png", "line\nbreak.png", "[1]*?.png", "'\".png", "%20.png"]
)
def test_odd_names_are_kept_as_they_are(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, f"{name}.folder/x.png")
    assert sorted(names_in(tmp_path)) == sorted([name, f"{name}.folder/x.png"])
    assert [f.path.name for f in expand_arguments([str(tmp_path / name)])] == [name]


def test_names_that_are_not_utf_8_are_found(tmp_path: Path) -> None:
    raw = b"part_\xff\xe9.png"
    (tmp_path / os.fsdecode(raw)).write_bytes(b"")
    (file,) = find_images(tmp_path)
    assert os.fsencode(file.name) == raw


def test_symlink_loops_end_and_give_each_image_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/one.png", "a/two.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path)
    assert names_in(tmp_path) == ["a/b/one.png", "a/two.png"]


def test_linked_files_and_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "store/one.png", "line/two.png")
    (tmp_path / "line" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "line" / "three.png").symlink_to(tmp_path / "store" / "one.png")
    assert names_in(tmp_path / "line") == ["linked/one.png", "three.png", "two.png"]


def test_a_folder_named_like_an_image_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "folder.png/inside.png")
    assert names_in(tmp_path) == ["folder.png/inside.png"]


def test_the_output_folder_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "results/heatmaps/a.png.png", "results2/b.png", "sub/results/c.png")
    expected = ["a.png", "results2/b.png", "sub/results/c.png"]
    assert names_in(tmp_path, exclude=tmp_path / "results") == expected
    monkeypatch.chdir(tmp_path)
    assert names_in(Path(), exclude=Path("results")) == expected
    assert names_in(tmp_path, exclude=Path("sub/../results")) == expected


def test_the_output_folder_is_left_out_behind_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "results/heatmaps/a.png.png")
    (tmp_path / "also").symlink_to(tmp_path / "results")
    assert names_in(tmp_path, exclude=tmp_path / "also") == ["a.png"]


def test_missing_folder_and_file_for_folder_are_usage_errors(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"a\.png: is a file"):
        find_images(tmp_path / "a.png")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "open.png", "closed/a.png")
    real = os.scandir

    def scandir(path: str | os.PathLike[str]) -> object:  # permissions do not stop root, so the system call fails
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InspectadError, match="closed: cannot be listed"):
        find_images(tmp_path)


def test_one_folder_gives_names_below_it(tmp_path: Path) -> None:
    touch(tmp_path, "line/a.png", "line/x/b.png", "other/c.png")
    assert [f.name for f in expand_arguments([str(tmp_path / "line")])] == ["a.png", "x/b.png"]


def test_several_arguments_share_their_common_root_and_keep_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.png", "a/1.png", "a/2.png", "c.png")
    given_order = [str(tmp_path / n) for n in ("b", "a", "c.png")]
    assert [f.name for f in expand_arguments(given_order)] == ["b/1.png", "a/1.png", "a/2.png", "c.png"]


def test_one_file_is_called_by_its_name_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "deep/frame.raw")
    assert [f.name for f in expand_arguments([str(tmp_path / "deep" / "frame.raw")])] == ["frame.raw"]


def test_a_file_given_twice_is_inspected_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png")
    one = str(tmp_path / "a" / "1.png")
    assert [f.name for f in expand_arguments([one, one])] == ["1.png"]
    assert [f.name for f in expand_arguments([one, str(tmp_path / "a")])] == ["1.png", "2.png"]
    assert [f.name for f in expand_arguments([one, str(tmp_path / "a" / ".." / "a" / "1.png")])] == ["1.png"]


def test_patterns_are_expanded_in_sorted_order(tmp_path: Path) -> None:
    touch(tmp_path, "x2.png", "x1.png", "y.png", "deep/er/x3.png")
    assert [f.name for f in expand_arguments([str(tmp_path / "x*.png")])] == ["x1.png", "x2.png"]
    deep = {f.name for f in expand_arguments([str(tmp_path / "**" / "x*.png")])}
    assert deep == {"x1.png", "x2.png", "deep/er/x3.png"}


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png", "a1.png")
    assert [f.name for f in expand_arguments([str(tmp_path / "a[1].png")])] == ["a[1].png"]


@pytest.mark.parametrize("argument", ["nothing", "nothing*.png"])
def test_an_argument_that_matches_nothing_is_a_usage_error(tmp_path: Path, argument: str) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="no such file or folder"):
        expand_arguments([str(tmp_path / "a.png"), str(tmp_path / argument)])


def test_a_dangling_link_gets_a_row(tmp_path: Path) -> None:
    """It was named, so it must not vanish in silence; reading it says what is wrong."""
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    assert [f.name for f in expand_arguments([str(tmp_path / "a.png")])] == ["a.png"]
    assert names_in(tmp_path) == ["a.png"]


def test_common_root_is_the_deepest_folder_of_all(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/1.png", "a/c/2.png")
    assert common_root([tmp_path / "a" / "b" / "1.png", tmp_path / "a" / "c"]) == tmp_path / "a"
    assert common_root([tmp_path / "a" / "b" / "1.png"]) == tmp_path / "a" / "b"


PARTS = st.sampled_from(["a", "b", "..", ".", "", "x y", "Ä", "...", "..a", "a\nb", "~", OUTSIDE, "con", "-"])
PATHS = st.tuples(st.booleans(), st.lists(PARTS, min_size=1, max_size=8)).map(
    lambda made: "/" * made[0] + "/".join(made[1]).lstrip("/")
)
ROOTS = st.lists(st.sampled_from(["a", "b", "x y"]), max_size=3).map(lambda parts: Path("/", *parts))


@settings(max_examples=400)
@given(PATHS, ROOTS)
def test_a_name_never_leaves_the_folder_it_is_joined_to(path: str, root: Path) -> None:
    name = relative_name(Path(path), root)
    assert not name.startswith("/")
    assert ".." not in PurePosixPath(name).parts
    joined = os.path.normpath(os.path.join("/out/heatmaps", name + ".png"))
    assert joined.startswith("/out/heatmaps")


@settings(max_examples=400)
@given(PATHS, ROOTS)
def test_a_name_says_where_the_file_is(path: str, root: Path) -> None:
    name = relative_name(Path(path), root)
    absolute = os.path.abspath(path)
    if (absolute + "/").startswith(str(root).rstrip("/") + "/"):
        assert os.path.normpath(root / name) == os.path.normpath(absolute)
    else:
        assert PurePosixPath(name).parts == (OUTSIDE, *PurePosixPath(absolute).parts[1:])


LISTED = [b"a.png", b"b c.png", "ö.png".encode(), b"\xff\xfe.png", b"sub/d.png"]


@pytest.mark.parametrize("end", [True, False], ids=["final-newline", "no-final-newline"])
@pytest.mark.parametrize("separator", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_lists_of_lines(separator: bytes, end: bool) -> None:
    stream = io.BytesIO(separator.join(LISTED) + (separator if end else b""))
    assert [os.fsencode(f.name) for f in read_path_list(stream, Path.cwd())] == LISTED


@pytest.mark.parametrize("end", [b"\0", b""], ids=["final-zero", "no-final-zero"])
def test_lists_with_zero_bytes_may_name_newlines(end: bytes) -> None:
    names = [*LISTED, b"line\nbreak.png"]
    stream = io.BytesIO(b"\0".join(names) + end)
    assert [os.fsencode(f.name) for f in read_path_list(stream, Path.cwd(), b"\0")] == names


def test_zero_separated_names_keep_a_final_carriage_return() -> None:
    """Only in lists of lines is it part of the line end."""
    (file,) = read_path_list(io.BytesIO(b"a.png\r\0"), Path.cwd(), b"\0")
    assert file.path == Path("a.png\r")


def test_empty_lines_are_skipped() -> None:
    stream = io.BytesIO(b"\n\r\na.png\n\n\r\nb.png\n\n")
    assert [f.name for f in read_path_list(stream, Path.cwd())] == ["a.png", "b.png"]


class Dripping(io.RawIOBase):
    """A pipe that hands over one byte at a time."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self.data[self.at : self.at + 1]
        buffer[: len(part)] = part
        self.at += len(part)
        return len(part)


def test_a_slow_pipe_gives_the_same_names_and_each_as_soon_as_its_line_is_there() -> None:
    stream = Dripping(b"a.png\nb.png\nc.png")
    names = read_path_list(stream, Path.cwd())
    assert next(names).name == "a.png"
    assert stream.at == len(b"a.png\n")
    assert [f.name for f in names] == ["b.png", "c.png"]


@settings(max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=12).filter(lambda b: b"\0" not in b and b.strip()), max_size=8))
def test_any_file_name_survives_a_zero_separated_list(names: list[bytes]) -> None:
    paths = [b"/r/" + name.replace(b"/", b"_") for name in names]
    files = list(read_path_list(io.BytesIO(b"".join(p + b"\0" for p in paths)), Path("/r"), b"\0"))
    assert [os.fsencode(f.path) for f in files] == [os.fsencode(Path(os.fsdecode(p))) for p in paths]


class Endless(io.RawIOBase):
    """As /dev/zero: it never ends, and no line in it does."""

    def read(self, size: int = -1) -> bytes:
        return b"x" * size


def test_a_line_that_no_path_is_as_long_as_is_no_list_of_paths() -> None:
    """Found by a review: its row was one that nothing could read back."""
    with pytest.raises(UsageError, match="a path of more than 32768 bytes"):
        list(read_path_list(io.BytesIO(b"a.png\n" + b"x" * 200_000 + b"\nb.png\n"), Path("/")))


def test_a_line_that_never_ends_is_no_list_of_paths() -> None:
    with pytest.raises(UsageError, match="a path of more than 32768 bytes"):
        list(read_path_list(Endless(), Path("/line")))
