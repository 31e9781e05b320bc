"""A folder on a disk, or a prefix of an object store (s3://, gs:// and whatever fsspec knows), used alike."""

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inspectad.atomic import write_atomically
from inspectad.errors import InspectadError, MissingDependencyError, OutputError, UnreadableImageError, UsageError
from inspectad.image_limits import check_file_bytes
from inspectad.images import read_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def absolute(text: str) -> str:
    """A path that means the same on every node: a URL as it is, another one from the root of the disk."""
    if text.lower().startswith("file://"):
        text = "/" + text[len("file://") :].lstrip("/")
    return text.rstrip("/") if _URL.match(text) else os.path.abspath(text)


@dataclass(frozen=True, slots=True)
class Place:
    """Where images are, or where results go: ``address`` as `absolute` gives it."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def is_url(self) -> bool:
        return _URL.match(self.address) is not None

    @property
    def has_path(self) -> bool:
        """False of a whole store, which holds all buckets."""
        return not self.is_url or bool(self.store[1])

    @property
    def path(self) -> Path:
        """Of a place on a disk."""
        return Path(self.address)

    @property
    def store(self) -> "tuple[AbstractFileSystem, str]":
        """Of a URL: its file system, and the path in it. Raises: UsageError, MissingDependencyError."""
        return _store(self.address)

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.address.rstrip('/')}/{name}")

    def read(self) -> bytes:
        """The bytes of an image here.

        Raises: UnreadableImageError; InspectadError where the store does not answer, or not to us.
        """
        if not self.is_url:
            return read_file(self.path)
        file_system, path = self.store
        try:
            check_file_bytes(int(file_system.info(path)["size"]))
            return bytes(file_system.cat_file(path))
        except UnreadableImageError:
            raise
        except FileNotFoundError as error:
            raise UnreadableImageError(f"cannot be opened: {_reason(error)}") from error
        except Exception as error:  # each store has errors of its own, which share no base
            raise InspectadError(
                f"{self}: cannot be read ({_reason(error)}); check the endpoint and the credentials of each node"
            ) from error

    def write(self, data: bytes) -> None:
        """A file that is either whole or not there: object stores show none before all of it arrived.

        Raises: OutputError.
        """
        if not self.is_url:
            write_atomically(self.path, data)
            return
        file_system, path = self.store
        try:
            file_system.pipe_file(path, data)
        except Exception as error:
            raise OutputError(f"{self}: cannot be written ({_reason(error)}); mend the permissions") from error

    def exists(self) -> bool:
        """Whether there is a file or a folder. Raises: InspectadError where that cannot be found out."""
        if not self.is_url:
            return self.path.exists()
        file_system, path = self.store
        return bool(self.asked(file_system.exists, path))

    def files(self) -> "list[Place]":
        """Files in this folder, by name, none where it does not exist. Raises: InspectadError."""
        if not self.is_url:
            return [self / p.name for p in sorted(self.path.iterdir())] if self.path.is_dir() else []
        file_system, path = self.store
        if not self.asked(file_system.isdir, path):
            return []
        found = self.asked(functools.partial(file_system.ls, detail=False), path)
        return [self / name.rpartition("/")[2] for name in sorted(found) if not name.endswith("/")]

    def asked(self, question: Callable[[str], Any], path: str) -> Any:
        """What the store answers. Raises: InspectadError: it does not."""
        try:
            return question(path)
        except Exception as error:
            raise InspectadError(
                f"{self}: cannot be listed ({_reason(error)}); check the address, the endpoint and the credentials"
            ) from error


@functools.lru_cache(maxsize=256)  # of addresses; fsspec has one connection pool a process
def _store(address: str) -> "tuple[AbstractFileSystem, str]":
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(address.partition("://")[0].lower())
        # Not url_to_fs, which takes "::" in an object's name for a chain of file systems.
        file_system = kind(**kind._get_kwargs_from_urls(address), use_listings_cache=False)
        path = kind._strip_protocol(address)
    except ImportError as error:  # it names the package
        raise MissingDependencyError(f"{address}: {error}; on all machines of the cluster") from error
    except ValueError as error:
        raise UsageError(f"{address}: {error}; for instance s3://bucket/folder, or a folder's path") from error
    return file_system, str(path).rstrip("/")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "No such file or directory"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
