from __future__ import annotations

import signal
import time

import pytest

from parked.prefork import settings
from parked.prefork.lifetime import LEAST_LIFE_S, Lifetime, is_bounded, resident_bytes
from tests.prefork.test_operations import load
from tests.support import PATIENCE_S, ServerProcess


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lifetime(*flags: str, clock: Clock | None = None, memory: int = 0, draw: float = 0.0) -> Lifetime:
    return Lifetime(settings.load(flags, {}), clock or Clock(), lambda: memory, lambda: draw)


@pytest.mark.parametrize(("draw", "bound"), [(0.0, 100), (0.5, 110), (1.0, 120)])
def test_requests_are_bounded_with_jitter(draw: float, bound: int) -> None:
    one = lifetime("--max-requests", "100", "--max-requests-jitter", "20", draw=draw)
    assert one.over(bound - 1) == ""
    assert one.over(bound) == f"{bound} requests"


def test_memory_is_bounded_but_not_in_the_first_moments() -> None:
    clock = Clock()
    one = lifetime("--max-worker-memory", "100M", clock=clock, memory=100 << 20)
    assert one.over(5) == ""
    clock.now += LEAST_LIFE_S
    assert one.over(5) == "100 MiB of memory"


@pytest.mark.parametrize(("draw", "bound"), [(0.0, 3600), (1.0, 3240)])
def test_age_is_bounded_for_each_a_little_differently(draw: float, bound: int) -> None:
    clock = Clock()
    one = lifetime("--max-worker-age", "1h", clock=clock, draw=draw)
    clock.now += bound - 1
    assert one.over(5) == ""
    clock.now += 2
    assert one.over(5) == f"{bound + 1} s of age"


def test_without_a_bound_it_never_ends() -> None:
    clock = Clock()
    one = lifetime(clock=clock, memory=1 << 40)
    clock.now += 1e9
    assert one.over(1 << 40) == ""
    assert not is_bounded(settings.load([], {}))
    assert is_bounded(settings.load(["--max-worker-age", "1h"], {}))


def test_memory_is_what_the_kernel_says() -> None:
    assert 1 << 20 < resident_bytes() < 1 << 36


def test_workers_are_replaced_one_at_a_time_and_no_request_fails() -> None:
    flags = ("--workers", "2", "--max-requests", "100", "--max-requests-jitter", "50")
    with ServerProcess(*flags) as server:
        first = {worker.pid for worker in server.workers()}
        with load(server) as clients:
            deadline = time.monotonic() + 4 * PATIENCE_S
            while first & {worker.pid for worker in server.workers()}:
                assert time.monotonic() < deadline
                assert len(server.workers()) >= 2
                time.sleep(0.05)
        assert clients.failures == []
        server.signal(signal.SIGTERM)
        code, output = server.wait()
    assert code == 0, output
    assert output.count(" wants a successor: ") >= 2
