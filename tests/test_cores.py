"""What is read off a system's description of its processors."""

from pathlib import Path

import pytest

from inspectad.cores import cores, lacks_vnni

ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni amx_int8\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n", True),
        ("processor\t: 0\nvmx flags\t: vnmi avx_vnni\nflags\t\t: fpu avx2\n", True),
        (ARM, False),
        ("", False),
    ],
)
def test_a_processor_without_vnni_is_told(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert lacks_vnni(tmp_path / "cpuinfo") is expected


def test_where_nothing_is_described_nothing_is_claimed(tmp_path: Path) -> None:
    assert lacks_vnni(tmp_path / "nothing") is False


def test_there_is_at_least_one_core() -> None:
    assert cores() >= 1
