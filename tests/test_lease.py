"""One driver per run: every interleaving of two takers, staleness by what is seen here, fencing, a dead process.

    python -m pytest -q tests/test_lease.py
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer import lease as module
from pretrainer.errors import LeaseError, StorageError
from pretrainer.lease import Claim, Lease, acquire, claim_path, hold, pid_started, this_machine
from pretrainer.storage import Store
from tests import s3

HEARTBEAT_S, TAKEOVER_S = 10.0, 60.0


class Memory(Store):
    """A store in a dict; `before` is called before each operation, so that a test can interleave owners."""

    def __init__(self, objects: dict[str, bytes], before: Callable[[], object] = lambda: None) -> None:
        super().__init__("/memory")
        object.__setattr__(self, "objects", objects)
        object.__setattr__(self, "before", before)

    def exists(self, path: str = "") -> bool:
        self.before()  # type: ignore[attr-defined]
        return path in self.objects  # type: ignore[attr-defined]

    def read(self, path: str = "") -> bytes:
        self.before()  # type: ignore[attr-defined]
        if path not in self.objects:  # type: ignore[attr-defined]
            raise FileNotFoundError(path)
        return bytes(self.objects[path])  # type: ignore[attr-defined]

    def write(self, path: str, data: bytes) -> None:
        self.before()  # type: ignore[attr-defined]
        self.objects[path] = data  # type: ignore[attr-defined]

    def create(self, path: str, data: bytes) -> bool:
        self.before()  # type: ignore[attr-defined]
        if self.objects.setdefault(path, data) != data:  # type: ignore[attr-defined]
            raise StorageError("exists with other bytes")
        return True

    def list(self, prefix: str = "", recursive: bool = True) -> Any:
        self.before()  # type: ignore[attr-defined]
        return [
            type("Entry", (), {"path": p})() for p in sorted(self.objects) if p.startswith(prefix)  # type: ignore[attr-defined]
        ]


class Clock:
    """Time that passes only in `sleep`; `then` happens at each sleep."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.now_s, self.then = 0.0, then

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.then()


def take(run: Store, clock: Clock | None = None, said: list[str] | None = None) -> Lease:
    clock = clock or Clock()
    say = (said if said is not None else []).append
    return acquire(run, "", HEARTBEAT_S, TAKEOVER_S, say, clock, clock.sleep)


def elsewhere(lease: Lease) -> None:
    """As if the holder were on another machine, where its process cannot be seen."""
    claim = replace(lease.claim, machine="another", host="far")
    lease.run.write(claim_path(claim.number), json.dumps(asdict(claim)).encode())
    lease.claim = claim


s3_endpoint, s3_uri = s3.s3_endpoint, s3.s3_uri


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    base, _question, query = request.getfixturevalue("s3_uri").partition("?")
    return Store(f"{base}/run?{query}")


def test_holder_on_this_machine_refuses_the_second_at_once(run: Store) -> None:
    first = take(run)
    first.beat()
    with pytest.raises(LeaseError, match=rf"driven by process {os.getpid()} on .*last heartbeat \d+ s ago.*run\.name"):
        take(run, Clock(then=lambda: pytest.fail("it waited")))


def test_released_lease_is_free_and_numbers_grow(run: Store) -> None:
    for number in (1, 2, 3):
        lease = take(run)
        lease.start()
        assert lease.claim.number == number == lease.fence.number
        lease.release()


def test_lease_is_released_when_the_block_fails(run: Store) -> None:
    with pytest.raises(ValueError), hold(run, "", HEARTBEAT_S, TAKEOVER_S):
        raise ValueError
    assert take(run).claim.number == 2


def test_living_holder_elsewhere_is_seen_by_its_heartbeat(run: Store) -> None:
    first = take(run)
    first.beat()
    elsewhere(first)
    clock = Clock(then=lambda: first.beat() if clock.now_s >= HEARTBEAT_S else None)
    with pytest.raises(LeaseError, match=r"process \d+ on far"):
        take(run, clock)
    assert clock.now_s < 2 * HEARTBEAT_S


@pytest.mark.parametrize("skew_s", [-1e6, 0.0, 1e6])
def test_silent_holder_elsewhere_is_taken_over_after_the_local_time(
    run: Store, monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    first, said, clock = take(run), [], Clock()
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "time", lambda: 1.7e9 + skew_s)  # the holder's clock says nothing
        first.beat()
    elsewhere(first)
    assert take(run, clock, said).claim.number == 2
    assert TAKEOVER_S <= clock.now_s <= TAKEOVER_S + HEARTBEAT_S
    assert "waiting up to 60 s" in said[0] and "far" in said[0] and "taking over" in said[1]


def test_driver_that_was_taken_over_stops_and_writes_nothing(run: Store) -> None:
    first = take(run)
    first.beat()
    elsewhere(first)
    second = take(run)
    before = {entry.path: run.read(entry.path) for entry in run.list()}
    with pytest.raises(LeaseError, match=rf"taken over by process {os.getpid()}"):
        first.beat()
    with pytest.raises(LeaseError):
        first.fence.check()
    second.fence.check()
    assert {entry.path: run.read(entry.path) for entry in run.list()} == before


def test_heartbeat_thread_notices_the_takeover(run: Store) -> None:
    first = Lease(run, take(run).claim, heartbeat_s=0.01)
    first.start()
    first.check()
    elsewhere(first)
    run.create(claim_path(2), json.dumps(asdict(replace(first.claim, number=2, owner="b"))).encode())
    first._thread.join(10)
    before = run.read_text("lease/000000001.heartbeat.json")
    with pytest.raises(LeaseError):
        first.check()
    first.release()
    assert run.read_text("lease/000000001.heartbeat.json") == before


def test_gone_process_on_this_machine_needs_no_waiting(run: Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lease = take(run)
    lease.beat()
    claim = replace(lease.claim, pid=child.pid, pid_started=pid_started(child.pid))
    run.write(claim_path(1), json.dumps(asdict(claim)).encode())
    with pytest.raises(LeaseError):
        take(run)
    child.kill()
    child.wait()
    said: list[str] = []
    assert take(run, Clock(then=lambda: pytest.fail("it waited")), said).claim.number == 2
    assert "gone" in said[0]


def test_another_process_with_the_pid_of_the_holder_is_not_the_holder(run: Store) -> None:
    lease = take(run)
    lease.beat()
    claim = replace(lease.claim, pid_started="1")
    run.write(claim_path(1), json.dumps(asdict(claim)).encode())
    assert take(run, Clock(then=lambda: pytest.fail("it waited"))).claim.number == 2


def test_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while pid_started(child.pid):
        pass
    child.wait()
    assert pid_started(os.getpid()) and not pid_started(2**22 + 1)


def test_answer_of_a_create_that_was_lost_counts_as_ours() -> None:
    class Lossy(Memory):
        def create(self, path: str, data: bytes) -> bool:
            super().create(path, data)
            return False

    assert take(Lossy({})).claim.number == 1


def test_storage_that_fails_is_not_a_lost_race() -> None:
    class Down(Memory):
        def create(self, path: str, data: bytes) -> bool:
            raise StorageError("503")

    with pytest.raises(StorageError, match="503"):
        take(Down({}))


# Two takers, each stopped before every storage operation, let go in a given order ----------------------------------


class Turns:
    """Threads that do one storage operation each time it is their turn."""

    def __init__(self, order: tuple[int, ...]) -> None:
        self.order, self.at, self.done = order, 0, [False, False]
        self.turn = threading.Condition()

    def _whose(self) -> int | None:
        while self.at < len(self.order) and self.done[self.order[self.at]]:
            self.at += 1
        return self.order[self.at] if self.at < len(self.order) else None

    def wait(self, who: int) -> None:
        with self.turn:
            self.turn.wait_for(lambda: self._whose() in (who, None), timeout=10)
            self.at += 1
            self.turn.notify_all()

    def end(self, who: int) -> None:
        with self.turn:
            self.done[who] = True
            self.turn.notify_all()


def race(objects: dict[str, bytes], order: tuple[int, ...]) -> list[Lease | LeaseError]:
    turns, results = Turns(order), [None, None]  # type: tuple[Turns, list[Any]]

    def taker(who: int) -> None:
        try:
            results[who] = take(Memory(objects, lambda: turns.wait(who)))
            results[who].beat()
        except LeaseError as error:
            results[who] = error
        finally:
            turns.end(who)

    threads = [threading.Thread(target=taker, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def interleavings() -> Iterator[tuple[int, ...]]:
    return itertools.product((0, 1), repeat=6)


def holder_that_died() -> dict[str, bytes]:
    claim = Claim(4, "old", "here", this_machine(), 2**22 + 1, "77", 0.0, "")
    return {claim_path(4): json.dumps(asdict(claim)).encode()}


@pytest.mark.parametrize("start", ["empty", "holder died"])
def test_two_takers_never_both_hold(start: str) -> None:
    for order in interleavings():
        objects = {} if start == "empty" else holder_that_died()
        results = race(objects, order)
        holders = [r for r in results if isinstance(r, Lease)]
        assert len(holders) == 1, (order, results)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=6, max_size=24))
def test_two_takers_never_both_hold_in_any_longer_order(order: list[int]) -> None:
    results = race(holder_that_died(), tuple(order))
    assert sum(isinstance(r, Lease) for r in results) == 1
