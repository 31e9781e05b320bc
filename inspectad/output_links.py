"""Nothing is written outside the output folder, whatever lies in it: links below it are not followed out of it.

The folder may come from anybody (unpacked, shared, left by another program), with a link for ``heatmaps`` or for
``results.csv`` planted in it. The output folder itself may be a link: the user named it.
"""

import os
from pathlib import Path

from inspectad.atomic import write_atomically
from inspectad.errors import OutputError


def check_stays_inside(output: Path, path: Path) -> None:
    """Refuse to write a file that really would lie elsewhere.

    Args:
        output: the folder that the user named.
        path: below it, by its name.
    Raises: OutputError.
    """
    root = os.path.realpath(output)
    # Of the file itself too: some are opened and written on, not replaced.
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise OutputError(f"{path}: a link leads out of the output folder; remove it, or choose another folder with -o")


def write_inside(output: Path, path: Path, data: bytes) -> None:
    """Write a file below the output folder, whole or not at all; a link in its place is replaced.

    Raises: OutputError: a folder on the way is a link that leads out of it, or as `write_atomically`.
    """
    check_stays_inside(output, path.parent)
    write_atomically(path, data)
