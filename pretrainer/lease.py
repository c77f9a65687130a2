"""One driver per run: a lease in the run folder, with a number that grows at every change of hands.

    <run>/lease/000000007.json            who took the lease; created exclusively, never changed
    <run>/lease/000000007.heartbeat.json  a counter that its holder raises; `released` at its end

The holder is the claim with the highest number, because two takers cannot both create the next one (`Store.create`).
A lease is taken over when its holder released it, when its process is gone from this machine, or when its heartbeat
did not change for `takeover_s` *as seen from here*: clocks of two machines are never compared. A driver that was only
paused finds the higher number at its next heartbeat, and rank 0 looks for it before each commit (`Fence.check`), so
that what comes after a takeover is written by one driver (fencing token: Kleppmann, "How to do distributed locking",
2016; departure: the object store cannot compare tokens, so the writer does it just before it writes).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrainer.errors import LeaseError, PretrainerError, StorageError
from pretrainer.storage import Store

log = logging.getLogger(__name__)

FOLDER = "lease"
RELEASED = "released"
POLLS_PER_HEARTBEAT = 4


@dataclass(frozen=True)
class Claim:
    """Who took the lease; `started_s` is for people, nothing is decided by it."""

    number: int
    owner: str
    host: str
    machine: str
    pid: int
    pid_started: str
    started_s: float
    where: str

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.started_s))
        return f"process {self.pid} on {self.host}, started {since} UTC{f', {self.where}' if self.where else ''}"


@dataclass(frozen=True)
class Fence:
    """What a writer carries to find out that its run has another driver now."""

    run_uri: str
    number: int

    def check(self) -> None:
        """Raise LeaseError if there is a newer claim: one look at one object."""
        run = Store(self.run_uri)
        if run.exists(claim_path(self.number + 1)):
            newest = _newest(run)
            raise LeaseError(f"run {run.uri} was taken over by {newest}: this driver stops and writes nothing more")


def claim_path(number: int) -> str:
    return f"{FOLDER}/{number:09d}.json"


def _heartbeat_path(number: int) -> str:
    return f"{FOLDER}/{number:09d}.heartbeat.json"


def _newest(run: Store) -> Claim | None:
    numbers = [entry.path for entry in run.list(FOLDER) if not entry.path.endswith(".heartbeat.json")]
    return Claim(**json.loads(run.read(max(numbers)))) if numbers else None


def _heartbeat(run: Store, number: int) -> str:
    """The heartbeat's bytes as text: only whether they change matters, and whether they say "released"."""
    try:
        return run.read_text(_heartbeat_path(number))
    except FileNotFoundError:
        return ""


def this_machine() -> str:
    """Something that two processes share only if each can see the other's pid."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + "/" + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def pid_started(pid: int) -> str:
    """Start time of a live process in clock ticks since boot; "" if it is gone or this system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Lease:
    """A held lease: a thread keeps its heartbeat, `check` says when it was lost, `release` gives it back."""

    def __init__(self, run: Store, claim: Claim, heartbeat_s: float) -> None:
        self.run, self.claim, self.heartbeat_s = run, claim, heartbeat_s
        self.fence = Fence(run.uri, claim.number)
        self.lost: LeaseError | None = None
        self._beats, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def beat(self) -> None:
        """Look for a newer claim, then raise the heartbeat; LeaseError if the lease is lost."""
        self.fence.check()
        self._beats += 1
        self._write(str(self._beats))

    def check(self) -> None:
        """Raise the LeaseError that the heartbeat has met, if any; does not touch storage."""
        if self.lost is not None:
            raise self.lost

    def release(self) -> None:
        """Give the lease back; nothing is written if another driver has it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.lost is None:
            try:
                self._write(RELEASED)
            except PretrainerError as error:
                log.warning("the run's lease was not released, so the next start waits until it is stale: %s", error)

    def start(self) -> None:
        self.beat()
        self._thread.start()

    def _write(self, value: str) -> None:
        self.run.write(_heartbeat_path(self.claim.number), json.dumps({"beat": value, "time_s": time.time()}).encode())

    def _keep(self) -> None:
        while not self._ended.wait(self.heartbeat_s):
            try:
                self.beat()
            except LeaseError as error:
                self.lost = error
                return
            except PretrainerError as error:
                log.warning("the heartbeat of the run's lease was not written: %s", error)


def acquire(
    run: Store,
    where: str,
    heartbeat_s: float,
    takeover_s: float,
    say: Callable[[str], None] = log.info,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Lease:
    """Take the run's lease, waiting at most about `takeover_s` for a silent holder.

    `where` (dashboard, job) is shown to whoever is refused. Raises LeaseError, which names the holder, if the holder
    is alive: its process is seen on this machine or its heartbeat changes; or if another taker was faster.
    """
    newest = _newest(run)
    if newest is not None:
        _wait_until_free(run, newest, heartbeat_s, takeover_s, say, clock, sleep)
    claim = _new_claim(newest.number + 1 if newest else 1, where)
    if not _create(run, claim):
        raise LeaseError(f"run {run.uri} was taken at this moment by {_newest(run)}: {REMEDY}")
    return Lease(run, claim, heartbeat_s)


def state(run: Store, takeover_s: float) -> tuple[str, int]:
    """(how the run's newest driver is, its number), for people: released (it ended in order), alive, silent; or none.

    On another machine it is silent when its clock and ours say that its last heartbeat is `takeover_s` old.
    """
    newest = _newest(run)
    if newest is None:
        return "none", 0
    beat = _heartbeat(run, newest.number)
    if _released(beat):
        return "released", newest.number
    if newest.machine == this_machine() and newest.pid_started:
        lives = pid_started(newest.pid) == newest.pid_started
    else:
        lives = bool(beat) and time.time() - json.loads(beat)["time_s"] < takeover_s
    return "alive" if lives else "silent", newest.number


REMEDY = "wait for it or stop it, or give this run another run.name"


def _new_claim(number: int, where: str) -> Claim:
    pid = os.getpid()
    return Claim(
        number, uuid.uuid4().hex, socket.gethostname(), this_machine(), pid, pid_started(pid), time.time(), where
    )


def _create(run: Store, claim: Claim) -> bool:
    """Whether the claim's object is ours: what it holds counts, not how the writing ended."""
    try:
        run.create(claim_path(claim.number), json.dumps(asdict(claim)).encode())
    except StorageError:
        if not run.exists(claim_path(claim.number)):
            raise
    return Claim(**json.loads(run.read(claim_path(claim.number)))) == claim


def _wait_until_free(
    run: Store,
    holder: Claim,
    heartbeat_s: float,
    takeover_s: float,
    say: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> None:
    """Return when the holder released the lease, is gone or is silent for `takeover_s`; LeaseError if it lives."""
    first, since_s, told = _heartbeat(run, holder.number), clock(), False
    if _released(first):
        return
    if holder.machine == this_machine() and holder.pid_started:
        if pid_started(holder.pid) != holder.pid_started:
            return say(f"the last driver of this run is gone ({holder}): taking over")
        raise LeaseError(f"run {run.uri} is being driven by {holder}{_age(first)}: {REMEDY}")
    while clock() - since_s < takeover_s:
        if not told:
            say(f"waiting up to {takeover_s:.0f} s for a sign of life of the last driver ({holder}{_age(first)})")
            told = True
        sleep(heartbeat_s / POLLS_PER_HEARTBEAT)
        now = _heartbeat(run, holder.number)
        if _released(now):
            return
        if now != first:
            raise LeaseError(f"run {run.uri} is being driven by {holder}{_age(now)}: {REMEDY}")
    say(f"no heartbeat for {takeover_s:.0f} s: taking over")


def _released(heartbeat: str) -> bool:
    return bool(heartbeat) and json.loads(heartbeat)["beat"] == RELEASED


def _age(heartbeat: str) -> str:
    """For people, by the clocks of both machines."""
    return f", last heartbeat {max(0.0, time.time() - json.loads(heartbeat)['time_s']):.0f} s ago" if heartbeat else ""


@contextmanager
def hold(
    run: Store, where: str, heartbeat_s: float, takeover_s: float, say: Callable[[str], None] = print
) -> Iterator[Lease]:
    """The run's lease for the length of the block; released however the block ends."""
    lease = acquire(run, where, heartbeat_s, takeover_s, say)
    lease.start()
    try:
        yield lease
    finally:
        lease.release()
