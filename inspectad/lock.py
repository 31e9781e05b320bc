"""One writer to an output folder: by a lock of the operating system, which ends with the process that holds it."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from inspectad.atomic import output_error
from inspectad.errors import OutputError

LOCK_NAME: Final = ".inspectad-lock"
"""Gone after a regular end, but on Windows; left by a killed process, where it locks nothing."""

_HELD: Final = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_UNSUPPORTED: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_ROUNDS: Final = 100  # of others that remove their file just when we lock it
_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # a link could lead to anybody's file

_NO_LOCKS: Final = "{folder}: its file system has no locks ({why}): see to it that nothing else writes there"

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # what is locked there cannot be read, so not the text
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Make the folder and keep all others out while the block runs; a new folder that stays empty goes again.

    Yields: a warning where the file system knows no locks; else "".

    Raises: OutputError when somebody else has it, with who it is, or when the folder cannot be written to.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # which never raises
    path = folder / LOCK_NAME
    descriptor, warning = _open_locked(folder)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the text
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield warning
    finally:
        with contextlib.suppress(OSError):
            if _is_still(path, descriptor):  # and so until the lock ends
                path.unlink()
        os.close(descriptor)
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


def _open_locked(folder: Path) -> tuple[int, str]:
    """The lock's file, opened and locked, and a warning where that means nothing."""
    path = folder / LOCK_NAME
    for left in reversed(range(_ROUNDS)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, _FLAGS, 0o666)
        except PermissionError as error:
            if os.path.exists(path):
                raise OutputError(
                    f"{path}: cannot be written; another user's inspectad is at work there, or was killed there: "
                    "remove the file if none is, or choose another folder with -o"
                ) from error
            raise output_error(folder, error) from error
        except OSError as error:
            raise output_error(folder, error) from error
        try:
            warning = _try_lock(descriptor, folder)
            if _is_still(path, descriptor):
                return descriptor, warning
            if not left:  # a file system that cannot tell which file is which
                return descriptor, _NO_LOCKS.format(folder=folder, why="files there have no fixed numbers")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the last holder removed it meanwhile: it keeps nobody out
    raise AssertionError("unreachable")


def _try_lock(descriptor: int, folder: Path) -> str:
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in _HELD:
            raise OutputError(
                f"{folder}: another inspectad is writing there ({_holder(descriptor)}); "
                "wait for its end or stop it, or choose another folder with -o"
            ) from error
        if error.errno not in _UNSUPPORTED:
            raise output_error(folder, error) from error
        return _NO_LOCKS.format(folder=folder, why=error.strerror)
    return ""


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        if text := os.read(descriptor, 200).decode(errors="replace"):
            return text
    return "which one is not known"


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False
