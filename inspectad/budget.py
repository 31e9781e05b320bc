"""How many decoded pixels the images that are being worked on may hold together."""

import contextlib
import threading
from collections.abc import Iterator


class Budget:
    """Holds workers back while the images being worked on hold too many pixels; one is always let through.

    How large an image is shows only when it is decoded, so each reserves what the largest so far took; the first, which
    may be as large as any, all there is.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._images, self._largest = limit, 0, 0, 0
        self._changed = threading.Condition()
        self._closed = False

    @contextlib.contextmanager
    def room(self) -> Iterator["Room"]:
        """Wait for room for an image, and keep it while the block runs, or until somebody else calls `Room.leave`."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._images or self._used + (self._largest or 1) <= self._limit
            )
            self._images += 1
            room = Room(self, self._largest or self._limit)
            self._used += room.reserved
        try:
            yield room
        finally:
            room.leave()

    def leave(self, room: "Room") -> None:
        """It holds nothing any more; said once or twice."""
        with self._changed:
            if not room.is_left:
                room.is_left = True
                self._used -= room.reserved
                self._images -= 1
                self._changed.notify_all()

    def correct(self, room: "Room", held: int) -> None:
        """Replace what was reserved for an image by what it holds."""
        with self._changed:
            self._used += held - room.reserved
            self._largest = max(self._largest - self._largest // 8, held)  # one huge image is soon forgotten
            room.reserved = held
            self._changed.notify_all()

    def close(self) -> None:
        """Let everybody through: the scan is over."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Room:
    """What one image reserved, in bytes."""

    def __init__(self, budget: Budget, reserved: int) -> None:
        self._budget, self.reserved, self.is_left = budget, reserved, False

    def leave(self) -> None:
        """It is free again."""
        self._budget.leave(self)

    def holds(self, held: int) -> None:
        """So much it really holds."""
        self._budget.correct(self, held)
