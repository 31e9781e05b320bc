"""The fuzzer: what once found a bug stays found, its watch notices what it must, and a short run finds nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")  # limits of memory; there is none on Windows

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "fuzz" / "corpus"


@pytest.mark.parametrize("target", sorted(path.name for path in CORPUS.iterdir()))
def test_the_corpus_is_read_or_refused(target: str) -> None:
    from fuzz.targets import TARGETS

    files = sorted((CORPUS / target).iterdir())
    assert files
    for path in files:
        TARGETS[target].run(path.read_bytes())


def run(*program: str, path: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    targets = "image,mask,path_list,results,manifest,model"
    done = run("-m", "fuzz", "--count", "3000", "--seed", "7", "--output", str(tmp_path), "--targets", targets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 findings") == 6


WATCH = """
import os, time
from fuzz import targets
from fuzz.__main__ import _fuzz, _input
import fuzz.__main__ as main_module
main_module._HANG_SECONDS = 10.0

def bad(data):
    number = next((n for n in range(6) if _input("path_list", 0, n) == data), None)
    if number == 1:
        os.abort()
    if number == 2:
        time.sleep(3600)
    if number == 3:
        bytearray(2**33)
    if number == 4:
        raise KeyError("not documented")

targets.TARGETS["path_list"] = targets.Target(**{
    **{n: getattr(targets.TARGETS["path_list"], n) for n in ("seeds", "words", "share")}, "run": bad})
"""


def test_a_crash_a_hang_and_a_lack_of_memory_are_told_with_their_input(tmp_path: Path) -> None:
    """The child is started by `-m fuzz`, so the bad target is put there by a module that Python loads by itself."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    program = f"{WATCH}\nimport sys\nsys.exit(main_module.main())"
    arguments = ("--targets", "path_list", "--count", "6", "--output", str(tmp_path / "found"))
    done = run("-c", program, *arguments, path=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "path_list: 6 inputs" in done.stdout
    for what in ("ends with -6, input 1", "hangs for 10 s, input 2", "MemoryError, input 3", "KeyError, input 4"):
        assert what in done.stdout
    assert len(list((tmp_path / "found").iterdir())) == 4


def test_an_input_follows_from_its_seed_alone() -> None:
    from fuzz.__main__ import _input

    assert [_input("image", 3, n) for n in range(20)] == [_input("image", 3, n) for n in range(20)]
    assert len({_input("image", seed, 0) for seed in range(20)}) > 10
