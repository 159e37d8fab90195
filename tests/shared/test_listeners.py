"""How many workers hold how many connections: the server's number is the load test's."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan.sizing import Plan
from parked.prefork import sizing
from parked.shared import listeners

NOFILE = (256, 300, 512, 1_000, 1_024, 4_096, 10_000, 20_000, 65_536, 1_000_000)
CONNECTIONS = (1, 2, 100, 192, 193, 1_000, 10_000, 19_744, 19_745, 100_000, 400_000, 1_000_000, 10_000_000)


@pytest.mark.parametrize("nofile", NOFILE)
def test_server_and_plan_agree_on_the_number_of_workers(nofile: int) -> None:
    machine = Machine.read()
    chance = random.Random(nofile)
    for connections in (*CONNECTIONS, *(round(10 ** chance.uniform(0, 7)) for _ in range(200))):
        for cpus in (1, 2, 64):
            here = replace(machine, nofile_hard=nofile, cpu_count=cpus)
            planned = Plan(connections).on(here).server_workers
            try:
                started = sizing.plan(None, connections, nofile, cpus)[0]
            except sizing.SizingError:
                assert planned > listeners.MAX_WORKERS
            else:
                assert planned == started
                assert sizing.plan(planned, connections, nofile, cpus) == (planned, connections)


def test_400_000_connections_at_20_000_files_take_22_workers() -> None:
    assert listeners.workers_for(400_000, 20_000, 2) == 22


@pytest.mark.parametrize("nofile", NOFILE)
@pytest.mark.parametrize("connections", CONNECTIONS)
def test_a_worker_has_room_for_six_sigma_above_its_share(connections: int, nofile: int) -> None:
    workers = listeners.workers_for(connections, nofile, 2)
    share = listeners.fullest_share(connections, workers)
    assert share <= listeners.room(nofile)
    assert listeners.nofile_for(share) <= nofile
    assert workers == 2 or listeners.capacity(workers - 1, nofile) < connections
    assert listeners.capacity(workers, nofile) >= connections


@pytest.mark.parametrize("connections", [1, 2, 75, 700, 767, 768, 769, 10_000])
def test_the_limit_that_is_asked_for_is_the_least_that_suffices(connections: int) -> None:
    nofile = listeners.nofile_for(connections)
    assert listeners.room(nofile) >= connections
    assert nofile == 1 or connections == 1 or listeners.room(nofile - 1) < connections


def test_a_tiny_limit_of_files_still_leaves_room() -> None:
    assert 0 < listeners.room(300) < 300
    assert 0 < listeners.room(64) < 64


def test_a_limit_without_sense_ends_in_a_number_not_in_a_loop() -> None:
    assert listeners.workers_for(5_000_000, 1, 2) == 5_000_000


def test_the_shares_of_a_hash_stay_below_the_share_that_is_planned_for() -> None:
    chance = random.Random(1)
    shares = [0] * 10
    for _ in range(50_000):
        shares[chance.randrange(10)] += 1
    assert max(shares) <= listeners.fullest_share(50_000, 10) < 1.1 * 5_000
    assert listeners.fullest_share(50_000, 1) == 50_000
    assert listeners.fullest_share(100, 10) <= 10 + 6 * math.sqrt(10)
