"""Memory that was freed, given back to the system."""

import ctypes
import sys


def give_back() -> bool:
    """Give back what the C library keeps for itself; no more than a few milliseconds. Linux with glibc alone needs it.

    There, what lies below the last block in use stays with the process, so that a large image now and then leaves its
    room behind, in one thread's heap after the other, for months. Smaller limits for that cost a tenth of the speed.

    Returns: whether anything was.
    """
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except AttributeError:  # another C library
        return False
