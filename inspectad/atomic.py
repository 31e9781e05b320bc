"""Files that are either whole or not there."""

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from inspectad.errors import OutputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside the target, then rename; folders are made.

    Raises:
        OutputError: no permission, disk full, or a file where a folder should be. No partial file is left.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes], *, durable: bool = False) -> None:
    """Write several files that belong together: nothing is replaced before all of them are written.

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
    except BaseException as error:  # Ctrl-C too must not leave temporary files behind
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise


def output_error(path: Path, error: OSError) -> OutputError:
    """Says what could not be written, why, and what to do."""
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); "
        "free some space or mend the permissions, or choose another folder with -o"
    )
