"""Sizing: the sums that DESIGN and the documentation quote, and that they hang together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import coefficients, sizing
from parked.loadtest.plan.sizing import Plan

GB = 10**9


def machine(**changes: object) -> Machine:
    """The 2-core, 24 GiB machine of the reference figures."""
    reference = Machine(
        cpu_count=2,
        cpu_model="EPYC",
        virtual=True,
        kernel="6.18",
        memory_total_bytes=24 * 2**30,
        memory_available_bytes=23 * 2**30,
        swap_free_bytes=0,
        nofile_soft=1024,
        nofile_hard=20_000,
        nr_open=1 << 20,
        file_max=2_466_183,
        file_nr=400,
        port_range=(32768, 60999),
        reserved_ports=(),
        somaxconn=4096,
        tcp_max_syn_backlog=2048,
        page_bytes=4096,
        tcp_mem_pages=(287_901, 383_869, 575_802),
        tcp_rmem_bytes=(4096, 131072, 6291456),
        tcp_wmem_bytes=(4096, 16384, 4194304),
        conntrack_max=None,
        conntrack_count=None,
    )
    return replace(reference, **changes)  # type: ignore[arg-type]


def test_400_000_connections_take_22_processes_on_each_side_at_20_000_descriptors() -> None:
    assert sizing.client_workers(400_000, 20_000, 2) == 22
    assert Plan(400_000).on(machine(nofile_hard=20_000)).server_workers == 22


@pytest.mark.parametrize(
    ("connections", "workers"), [(1, 1), (2_000, 1), (2_001, 2), (10_000, 5), (90_000, 8)]
)
def test_small_runs_take_few_client_processes_and_larger_ones_up_to_a_core_each(
    connections: int, workers: int
) -> None:
    assert sizing.client_workers(connections, 1 << 20, 8) == workers


@pytest.mark.parametrize(
    "connections", [1, 1_000, 2_001, 19_500, 20_000, 39_000, 100_000, 400_000, 1_500_000]
)
@pytest.mark.parametrize("nofile", [1_024, 4_096, 20_000, 1 << 20])
def test_no_process_needs_more_descriptors_than_it_may_have(connections: int, nofile: int) -> None:
    clients = sizing.client_workers(connections, nofile, 2)
    assert -(-connections // clients) + sizing.CLIENT_DESCRIPTORS_RESERVED <= nofile


@pytest.mark.parametrize("connections", [2_001, 20_000, 39_000, 400_000])
def test_the_users_of_a_lost_client_process_find_room_in_the_others(connections: int) -> None:
    rest = sizing.client_workers(connections, 20_000, 2) - 1
    assert connections <= rest * (20_000 - sizing.CLIENT_DESCRIPTORS_RESERVED)


def test_a_descriptor_limit_below_the_reserve_ends_in_a_number_not_in_a_loop() -> None:
    assert sizing.client_workers(5_000, 256, 2) == 5_001


def test_addresses_follow_from_the_ports_of_the_range() -> None:
    everything = machine(port_range=(1024, 65535))
    assert everything.usable_ports == 64_512
    assert sizing.addresses_needed(400_000, everything.usable_ports) == 7
    assert sizing.addresses_needed(400_000, machine().usable_ports) == 15
    assert sizing.addresses_needed(19_500, machine().usable_ports) == 1
    assert sizing.addresses_needed(28_232, 28_232) == 1
    assert sizing.addresses_needed(28_233, 28_232) == 2


def test_the_estimate_agrees_with_the_measured_pair_at_400_000() -> None:
    need = sizing.estimate(Plan(400_000), machine())
    assert need.requests_per_s == 8_000
    assert need.kernel_bytes == pytest.approx(3.12 * GB, rel=0.1)
    assert need.server_bytes == pytest.approx(0.226 * GB, rel=0.1)
    assert need.files >= 800_000
    assert need.received_bytes_per_s == pytest.approx(8_000 * 5_800, rel=0.01)


def test_the_estimate_agrees_with_the_measured_million() -> None:
    need = sizing.estimate(Plan(1_000_000, think_s=(30, 270)), machine())
    assert need.kernel_bytes == pytest.approx(7.8 * GB, rel=0.1)


def test_a_request_costs_less_on_a_busy_machine_and_in_fewer_processes() -> None:
    """The server: some 130 us a request on an idle machine, 100 us on a busy one with 44 processes."""

    def microseconds(connections: int, **changes: object) -> float:
        need = sizing.estimate(Plan(connections), machine(**changes))
        return need.server_cores / need.requests_per_s * 1e6

    idle, busy = microseconds(20_000), microseconds(400_000)
    few = microseconds(400_000, nofile_hard=1 << 20)
    assert 110 < idle < 150
    assert 90 < busy < 110
    assert few < 0.7 * busy


@pytest.mark.parametrize("connections", [1, 20_000, 400_000, 5_000_000])
@pytest.mark.parametrize("cpu_count", [1, 2, 64])
def test_the_parts_of_the_cpu_agree_with_the_busy_share_that_they_were_computed_from(
    connections: int, cpu_count: int
) -> None:
    """U is kernel, server and client over the cores: the kernel's part is proportional to it. Beyond what
    moderation leaves idle it is what they would have been without."""
    plan = Plan(connections).on(machine(cpu_count=cpu_count))
    need = sizing.estimate(plan, machine(cpu_count=cpu_count))
    most = need.requests_per_s * coefficients.KERNEL_CPU_S_PER_REQUEST
    most += (plan.server_workers + plan.client_workers) * coefficients.KERNEL_WORKER_CORES
    busy = need.kernel_cores / most
    if busy < coefficients.MODERATED_SHARE:
        assert busy == pytest.approx(need.cores / cpu_count)
    else:
        assert need.cores >= coefficients.MODERATED_SHARE * cpu_count - 1e-9


def test_workers_that_wake_less_often_carry_more_on_the_same_cores() -> None:
    """Of two cores 1.68 were busy at 400,000, 1.75 at 600,000 with 6,000 requests/s."""
    held, more, most = (
        sizing.estimate(Plan(connections), machine()) for connections in (400_000, 600_000, 2_000_000)
    )
    assert 1.65 < held.cores <= more.cores
    assert more.cores == pytest.approx(2 * coefficients.MODERATED_SHARE)
    assert most.cores > 2.5  # warm requests alone are too many


def test_one_side_alone_is_counted_alone() -> None:
    both = sizing.estimate(Plan(100_000), machine())
    client = sizing.estimate(Plan(100_000, local_server=False), machine())
    server = sizing.estimate(Plan(100_000, local_client=False), machine())
    assert (server.client_bytes, server.client_cores, client.server_bytes, client.server_cores) == (
        0,
        0,
        0,
        0,
    )
    assert client.memory_bytes + server.memory_bytes == both.memory_bytes
    assert client.files + server.files == both.files


def test_a_remote_server_costs_nothing_here_and_halves_the_kernels_share() -> None:
    near = sizing.estimate(Plan(50_000), machine())
    far = sizing.estimate(Plan(50_000, local_server=False), machine())
    assert (far.server_bytes, far.server_cores) == (0, 0)
    assert far.kernel_bytes * 2 == near.kernel_bytes
    assert Plan(50_000, local_server=False).on(machine()).server_workers == 0


def test_process_counts_that_were_asked_for_are_kept() -> None:
    plan = Plan(50_000, client_workers=7, server_workers=9).on(machine())
    assert (plan.client_workers, plan.server_workers) == (7, 9)


def test_what_waits_costs_what_was_measured_of_it() -> None:
    asked, events = Plan(400_000), Plan(400_000, think_s=(30.0, 30.0), waits="events")
    ours = machine()
    keepalive, waiting = sizing.estimate(asked, ours), sizing.estimate(events, ours)
    more = coefficients.SERVER_PENDING_BYTES - coefficients.SERVER_CONNECTION_BYTES
    assert waiting.server_bytes - keepalive.server_bytes == 400_000 * more
    assert waiting.requests_per_s == pytest.approx(400_000 / 30)
    assert waiting.received_bytes_per_s == pytest.approx(400_000 / 30 * sizing.EVENT_BYTES)
    polls = sizing.estimate(replace(asked, waits="longpoll"), ours)
    assert polls.requests_per_s == keepalive.requests_per_s
    at_rest = Plan(400_000).on(ours).server_workers * coefficients.SERVER_WORKER_CORES
    answers = polls.requests_per_s * coefficients.SERVER_CPU_S_PER_POLL
    assert polls.server_cores == pytest.approx(at_rest + answers)
    assert polls.server_bytes == waiting.server_bytes
