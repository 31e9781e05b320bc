"""Memory that was freed, given back to the system."""

import ctypes
import sys
from typing import Final

_EVERY: Final = 500
_LARGE: Final = 1_000_000  # pixels
_LARGER: Final = 4
_REMEMBERED: Final = 100


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


class Keeper:
    """Says when to give memory back: every `_EVERY` images, and behind one that is far larger than those before it.

    The room of such an image would stay behind in the heap of the thread that had it. Where all images are large, it is
    needed again at once, and giving it back would cost time.
    """

    def __init__(self) -> None:
        self._images = 0
        self._usual = 0.0

    def is_due(self, pixels: int) -> bool:
        """Args: pixels of the image that was finished; 0 where it was not decoded."""
        self._images += 1
        is_unusual = pixels > max(_LARGE, _LARGER * self._usual)
        self._usual += (pixels - self._usual) / min(self._images, _REMEMBERED)
        return is_unusual or self._images % _EVERY == 0
