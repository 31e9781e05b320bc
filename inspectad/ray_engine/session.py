"""Ray, started for us on this machine or found where ``--address`` says; and what its errors mean to a user."""

import contextlib
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

from inspectad import __version__
from inspectad.cores import cores
from inspectad.errors import InspectadError, MissingDependencyError, UsageError

_STORE_BYTES: Final = 512 * 2**20
"""For what is on its way between tasks on this machine: the model, names and rows; images never are."""
_CONNECT_S: Final = 10.0
_NOT_THERE: Final = "the nodes of the cluster need what this machine has: pip install 'inspectad[ray]' on each"


@contextlib.contextmanager
def session(address: str | None) -> Iterator[None]:
    """Ray, while the block runs. One that is connected already is used as it is, and left so.

    Args: address: of a cluster (``auto``, ``HOST:PORT``); None starts Ray on this machine, and ends it.

    Raises: MissingDependencyError, UsageError, InspectadError.
    """
    if address not in (None, "auto"):
        _check_reachable(address)
    # Nothing is sent home from a factory; and C++ log lines are no messages for our users.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do, and warns of until then
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            f"--engine ray needs Ray ({error}); pip install 'inspectad[ray]', on all machines of the cluster"
        ) from error
    if ray.is_initialized():
        _be_quiet()
        yield
        return
    with _our_signal_handlers(), _silent(), contextlib.chdir(os.path.abspath(os.sep)):
        # Ray has all its processes look for modules in the folder where it is started. In a folder of images, whoever
        # may put files there must not be able to name one cv2.py.
        _start(address)
    _be_quiet()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints what it has to say of lost nodes
            yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes. Raises: UsageError, InspectadError."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise UsageError(
            f"--address {address}: give auto or HOST:PORT, on a machine of the cluster (or as 'ray job submit' does); "
            "Ray Data does not run through a Ray client"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InspectadError(
            f"--address {address}: nobody answers there ({error}); 'ray start --head' says the address of a cluster"
        ) from error


def _start(address: str | None) -> None:
    import ray

    try:
        if address is None:
            ray.init(
                "local",
                num_cpus=cores(),
                object_store_memory=_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = "Ray did not start here" if address is None else f"--address {address}: no Ray cluster there"
        raise InspectadError(
            f"{where} ({' '.join(str(error).split())[:300]}); "
            "'ray start --head' starts one, and 'ray status' says what it has"
        ) from error


def _be_quiet() -> None:
    """Ray Data's own messages and bars off: this program has its own."""
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if handler.get_name() == "console":
            handler.setLevel(logging.CRITICAL)
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without standard error: Ray's C++ part says there that its log level was set; what fails is raised."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _our_signal_handlers() -> Iterator[None]:
    """Kept: Ray puts one of its own in place of ours, which knows the exit code."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def check_version(wanted: str) -> None:
    """On a node: whether it runs the same program. Raises: InspectadError."""
    if wanted != __version__:
        raise InspectadError(
            f"the node {platform.node()} has inspectad {__version__}, this machine {wanted}; install the same on all"
        )


def meaning(error: BaseException) -> BaseException:
    """Of an error that comes from a task: ours, where one of ours was the cause."""
    cause: BaseException | None = error
    while cause is not None:
        original = getattr(cause, "cause", None)  # where Ray keeps what a task raised
        for candidate in (original, cause):
            if isinstance(candidate, InspectadError) and type(candidate).__module__ == InspectadError.__module__:
                return candidate
        if "No module named 'inspectad" in str(cause):
            return InspectadError(_NOT_THERE)
        cause = cause.__cause__ or (original if isinstance(original, BaseException) else None)
    return error
