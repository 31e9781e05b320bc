"""Files that are either whole or not there."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from inspectad.errors import OutputError

_TEMPORARY: Final = re.compile(r"\.inspectad-[0-9a-f]{32}\.tmp")


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside the target, then rename; folders are made.

    Raises:
        OutputError: no permission, disk full, or a file where a folder should be. No partial file is left.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes], *, durable: bool = False) -> None:
    """Write several files that belong together: nothing is replaced before all of them are written.

    They are replaced in their order. What fails or is stopped after the first one is finished as far as it can be; of a
    process that is killed there, the others' data still lies beside them, see `leftovers`.

    Args: durable: wait until the data is on the disk, so that not even a power cut leaves an empty file.

    Raises: as `write_atomically`.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path] = path.with_name(f".inspectad-{uuid.uuid4().hex}.tmp")
            with open(staged[path], "xb") as handle:
                handle.write(data)
                if durable:
                    handle.flush()
                    os.fsync(handle.fileno())
        for path, temporary in staged.items():
            os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too must neither leave temporary files behind nor stop half-way
        is_begun = any(staged) and not next(iter(staged.values())).exists()  # the first is in place already
        for target, temporary in staged.items():
            with contextlib.suppress(OSError):
                if is_begun:
                    os.replace(temporary, target)
                else:
                    temporary.unlink()
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise
    if durable:
        for folder in {path.parent for path in files}:
            _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """The renames too are to outlive a power cut. Windows cannot open folders, and does so by itself."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def leftovers(folder: Path, *, below: bool = False) -> Iterator[Path]:
    """The temporary files that a killed process left in a folder (``below``: and in those in it).

    Some may be of a process that is still at work: hold `inspectad.lock.locked` to remove them.
    """
    for here, folders, names in os.walk(folder):
        yield from (Path(here, name) for name in names if _TEMPORARY.fullmatch(name))
        if not below:
            folders.clear()


def remove_leftovers(folder: Path, *, below: bool = False) -> None:
    """Remove what `leftovers` gives, as far as it can be."""
    for path in leftovers(folder, below=below):
        with contextlib.suppress(OSError):
            path.unlink()


def output_error(path: Path, error: OSError) -> OutputError:
    """Says what could not be written, why, and what to do."""
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); "
        "free some space or mend the permissions, or choose another folder with -o"
    )
