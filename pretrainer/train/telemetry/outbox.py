"""Events on their way to the tracker: sent in order by a thread, so that a server that hangs costs no rank a moment."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pretrainer.errors import TrackingError

log = logging.getLogger(__name__)

RETRY_S = 5.0


class Outbox:
    """Sends what is put in, each once and in order; an event that the server refused for now is tried again."""

    def __init__(self, send: Callable[[dict[str, Any]], object], retry_s: float = RETRY_S) -> None:
        self._send, self._retry_s = send, retry_s
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    def put(self, event: dict[str, Any]) -> None:
        """Returns at once. Raises the error that ended the sending for good, if one did: it is a bug of ours."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._waiting.append(event)
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> int:
        """Wait until everything is sent, at most `timeout_s`; returns how many events still wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._error is not None, timeout_s)
            if self._error is not None:
                raise self._error
            return len(self._waiting)

    def _work(self) -> None:
        while self._error is None:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                event = self._waiting[0]
            self._try(event)

    def _try(self, event: dict[str, Any]) -> None:
        try:
            self._send(event)
        except TrackingError as error:
            log.warning("%s; %d events wait", error, len(self._waiting))
            return time.sleep(self._retry_s)
        except Exception as error:  # kept for `put` and `drain`: a thread has nobody to raise it to
            self._error = error
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()
