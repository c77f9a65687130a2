"""A window that moves over the bytes of a shard, for formats whose records are not lines."""

from __future__ import annotations

from collections.abc import Iterator

from pretrainer.data.readers.decompress import CorruptStreamError


class Window:
    """Bytes from `position` (decompressed) on, of which only those asked for are in memory.

    A damaged stream ends where its damage is, and `broken` says why.
    """

    def __init__(self, pieces: Iterator[bytes], position: int) -> None:
        self.position = position
        self.broken: CorruptStreamError | None = None
        self._pieces, self._buffer = pieces, bytearray()

    def has(self, count: int) -> bool:
        """Whether so many bytes are left; reads until it knows."""
        while len(self._buffer) < count:
            try:
                piece = next(self._pieces, None)
            except CorruptStreamError as error:
                self.broken, self._pieces = error, iter(())
                return False
            if piece is None:
                return False
            self._buffer += piece
        return True

    def peek(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        self.has(count)
        return bytes(self._buffer[:count])

    def take(self, count: int) -> bytes:
        """The next bytes, fewer at the end; the window moves behind them."""
        data = self.peek(count)
        self._move(len(data))
        return data

    def skip(self, count: int) -> bool:
        """Move by so many bytes without keeping them; False where the stream ends before."""
        while count > len(self._buffer):
            count -= len(self._buffer)
            self._move(len(self._buffer))
            if not self.has(1):
                return False
        self._move(count)
        return True

    def find(self, wanted: bytes, limit: int, begin: int = 0) -> int:
        """Distance of the next occurrence that ends within `limit` bytes, -1 without one."""
        while True:
            found = self._buffer.find(wanted, begin, limit)
            if found >= 0 or len(self._buffer) >= limit:
                return found
            begin = max(begin, len(self._buffer) - len(wanted) + 1)
            if not self.has(len(self._buffer) + 1):
                return -1

    def skip_bytes_of(self, kinds: bytes) -> None:
        """Move behind the next bytes that are all in `kinds`."""
        while self.has(1):
            blanks = len(self._buffer) - len(self._buffer.lstrip(kinds))
            self._move(blanks)
            if self._buffer:
                return

    def _move(self, count: int) -> None:
        del self._buffer[:count]
        self.position += count
