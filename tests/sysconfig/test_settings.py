"""sysconfig/check, apply and revert over a directory of files, and a network namespace's own settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sysconfig.fake_root import SMALL, SYSCONFIG, Machine

CHECKOUT = SYSCONFIG.parent

TOO_LOW, USAGE, REFUSED, NOT_ROOT = 1, 2, 3, 4

#: The same after apply -c 400000, whitespace aside.
RAISED = {
    "net/ipv4/ip_local_reserved_ports": "5557,8000,8089",
    "net/ipv4/ip_local_port_range": "1024 65535",
    "net/core/somaxconn": "4096",
    "net/ipv4/tcp_syncookies": "0",
    "net/ipv4/tcp_max_syn_backlog": "4096",
    "net/core/netdev_max_backlog": "3200",
    "net/ipv4/tcp_mem": "900000 1200000 1800000",
    "net/ipv4/tcp_rmem": "4096 32768 6291456",
    "net/ipv4/tcp_wmem": "4096 16384 32768",
    "fs/file-max": "900000",
    "fs/nr_open": "6750",
    "net/netfilter/nf_conntrack_max": "410000",
}


def as_words(values: dict[str, str]) -> dict[str, str]:
    return {name: " ".join(value.split()) for name, value in values.items()}


def judged(machine: Machine, *arguments: str) -> dict[str, dict[str, str]]:
    """check --json, by setting, without nofile: that is of the machine the tests run on."""
    return {name: row for name, row in all_judged(machine, *arguments).items() if name != "nofile"}


def all_judged(machine: Machine, *arguments: str) -> dict[str, dict[str, str]]:
    result = machine.run("check", "--json", *arguments)
    assert result.returncode in (0, TOO_LOW), result.stderr
    return {row["setting"]: row for row in json.loads(result.stdout)["settings"]}


def test_apply_raises_all_that_is_too_low_and_revert_puts_back_every_byte(
    machine: Machine, shell: tuple[str, ...]
) -> None:
    machine.shell = shell
    applied = machine.run("apply")
    assert applied.returncode == 0, applied
    assert as_words(machine.values()) == RAISED
    assert {row["status"] for row in judged(machine).values()} == {"ok"}

    reverted = machine.run("revert")
    assert (reverted.returncode, reverted.stderr) == (0, "")
    assert machine.values() == SMALL
    assert not machine.state.exists()
    again = machine.run("revert")
    assert (again.returncode, again.stdout) == (0, "nothing to revert\n")


def test_a_second_apply_changes_nothing_and_says_so(machine: Machine) -> None:
    machine.run("apply")
    state = machine.state.read_text()
    second = machine.run("apply")
    assert second.returncode == 0
    assert second.stdout.splitlines()[-1] == "nothing to change for 400000 connections"
    assert as_words(machine.values()) == RAISED
    assert machine.state.read_text() == state


def test_revert_goes_back_to_what_was_there_before_the_first_of_two_applies(machine: Machine) -> None:
    machine.run("apply", "-c", "50000")
    between = machine.values()
    machine.run("apply", "-c", "400000")
    assert machine.values() != between
    assert machine.run("revert").returncode == 0
    assert machine.values() == SMALL


def test_what_is_high_enough_is_neither_lowered_nor_remembered(machine: Machine) -> None:
    machine.write("fs/file-max", "9223372036854775807\n")
    machine.write("net/ipv4/tcp_mem", "800000\t2000000\t3000000\n")
    machine.write("net/ipv4/ip_local_port_range", "1000\t60999\n")
    machine.run("apply")
    values = as_words(machine.values())
    assert values["fs/file-max"] == "9223372036854775807"
    assert values["net/ipv4/tcp_mem"] == "900000 2000000 3000000"
    assert values["net/ipv4/ip_local_port_range"] == "1000 65535"
    assert "file-max" not in machine.state.read_text()


@pytest.mark.parametrize(
    ("reserved", "merged"),
    [
        ("9000", "9000,5557,8000,8089"),
        ("7990-8010", "7990-8010,5557,8089"),
        ("5557,8000,8089", "5557,8000,8089"),
        ("5000-9000", "5000-9000"),
        ("80000", "80000,5557,8000,8089"),
    ],
)
def test_reserved_ports_are_added_to_what_is_reserved_already(
    machine: Machine, reserved: str, merged: str
) -> None:
    machine.write("net/ipv4/ip_local_reserved_ports", f"{reserved}\n")
    machine.run("apply")
    assert machine.values()["net/ipv4/ip_local_reserved_ports"] == f"{merged}\n"


def test_a_dry_run_changes_nothing_and_needs_no_root(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000)
    dry = machine.run("apply", "--dry-run")
    assert dry.returncode == 0
    assert "fs.file-max: 100000 -> 900000 (not done)" in dry.stdout
    assert machine.values() == SMALL
    assert not machine.state.parent.exists()

    machine.state.parent.mkdir()
    machine.state.write_text("fs.file-max=5\n")
    dry = machine.run("revert", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "fs.file-max: 100000 -> 5 (not done)\n")
    assert machine.values() == SMALL
    assert machine.state.read_text() == "fs.file-max=5\n"


@pytest.mark.parametrize("script", ["apply", "revert"])
def test_without_root_it_is_refused_in_one_line(tmp_path: Path, script: str) -> None:
    machine = Machine(tmp_path, uid=1000)
    machine.state.parent.mkdir()
    machine.state.write_text("fs.file-max=5\n")
    result = machine.run(script)
    assert result.returncode == NOT_ROOT
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{script}: needs root")
    assert machine.values() == SMALL


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to become nobody")
def test_nobody_is_refused_by_the_real_id() -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    script = str(SYSCONFIG / "apply")
    if subprocess.run([*nobody, "test", "-x", script], check=False).returncode:
        pytest.skip("the checkout is not readable for nobody")
    result = subprocess.run([*nobody, script], capture_output=True, text=True, check=False)
    assert result.returncode == NOT_ROOT


def test_check_says_for_what_is_too_low_why_what_happens_and_what_mends_it(
    machine: Machine, shell: tuple[str, ...]
) -> None:
    machine.shell = shell
    result = machine.run("check")
    assert result.returncode == TOO_LOW
    lines = result.stdout.splitlines()
    at = lines.index("LOW  fs.file-max                       100000, needed 900000")
    why, symptom, fix, see = lines[at + 1 : at + 5]
    assert "two sockets per connection" in why
    assert "ENFILE" in symptom
    assert fix.split("fix:")[1].strip() == 'sudo sysctl -w fs.file-max="900000"'
    assert see.endswith("Documentation/admin-guide/sysctl/fs.rst")
    assert machine.values() == SMALL


def test_every_fix_that_check_names_would_satisfy_it(machine: Machine) -> None:
    for row in judged(machine).values():
        assert row["status"] == "low", row
        command = re.fullmatch(r'sudo sysctl -w ([^=]+)="(.*)"', row["fix"])
        assert command
        machine.write(command[1].replace(".", "/"), command[2] + "\n")
    assert {row["status"] for row in judged(machine).values()} == {"ok"}


def test_check_answers_by_its_exit_code(machine: Machine) -> None:
    machine.run("apply", "-c", "1000")
    result = machine.run("check", "-c", "1000")
    assert (result.returncode, result.stdout.splitlines()[-1]) == (
        0,
        "nothing is too low for 1000 connections",
    )
    assert machine.run("check", "-c", "400000").returncode == TOO_LOW


def test_check_counts_the_limit_of_the_calling_shell(machine: Machine) -> None:
    machine.run("apply", "-c", "1000")
    command = f'ulimit -n 2000; "{SYSCONFIG}/check" -c 1000'
    machine.shell = ("sh", "-c", command)
    result = machine.run("check")
    assert result.returncode == TOO_LOW
    assert "LOW  nofile                            soft 2000 hard 2000, needed 4096" in result.stdout
    assert "ulimit -Hn 4096" in result.stdout


def test_check_explains_what_is_high_enough_if_asked(machine: Machine) -> None:
    machine.run("apply")
    brief, verbose = machine.run("check").stdout, machine.run("check", "--verbose").stdout
    assert "symptom:" not in brief
    rows = judged(machine)
    assert verbose.count("symptom:") == len(all_judged(machine))
    assert all(
        f"{row['symptom']}\n" in verbose and f"{row['document']}\n" in verbose for row in rows.values()
    )


def test_the_keys_of_the_json_are_those_that_the_help_names(machine: Machine) -> None:
    (machine.proc_sys / "net/ipv4/tcp_mem").unlink()
    result = machine.run("check", "--json")
    report = json.loads(result.stdout)
    assert list(report) == ["connections", "settings", "low", "unreadable"]
    keys = ["setting", "status", "scope", "found", "needed", "why", "symptom", "fix", "document"]
    help_text = machine.run("check", "--help").stdout
    for row in report["settings"]:
        assert list(row) == keys
        assert row["status"] in ("ok", "low", "unreadable")
        assert row["scope"] in ("namespace", "host", "process")
        assert bool(row["fix"]) == (row["status"] != "ok")
    assert all(f'"{key}"' in help_text for key in [*report, *keys])
    assert report["low"] == [row["status"] for row in report["settings"]].count("low")
    assert report["unreadable"] == 1


def test_small_runs_need_less(machine: Machine) -> None:
    settings = judged(machine, "-c", "1000")
    assert settings["net.ipv4.ip_local_port_range"]["status"] == "ok"
    assert settings["net.ipv4.tcp_mem"]["needed"] == "2250 3000 4500"


def test_the_syn_backlog_is_left_out_where_syn_cookies_make_it_unused(machine: Machine) -> None:
    assert "net.ipv4.tcp_max_syn_backlog" in judged(machine)
    machine.write("net/ipv4/tcp_syncookies", "1\n")
    assert "net.ipv4.tcp_max_syn_backlog" not in judged(machine)


def test_connection_tracking_is_left_out_where_it_is_not_loaded(machine: Machine) -> None:
    assert "net.netfilter.nf_conntrack_max" in judged(machine)
    (machine.proc_sys / "net/netfilter/nf_conntrack_max").unlink()
    assert "net.netfilter.nf_conntrack_max" not in judged(machine)


def test_a_setting_that_only_the_host_has_is_said_so_and_the_others_are_set(machine: Machine) -> None:
    (machine.proc_sys / "net/ipv4/tcp_mem").unlink()
    assert judged(machine)["net.ipv4.tcp_mem"]["status"] == "unreadable"
    shown = machine.run("check").stdout
    assert "??   net.ipv4.tcp_mem                  not readable here, needed 900000 1200000 1800000" in shown
    host = "the host must set it: sysctl -w net.ipv4.tcp_mem='900000 1200000 1800000' there"
    assert f"fix:     {host}\n" in shown
    result = machine.run("apply")
    assert result.returncode == REFUSED
    assert result.stderr.startswith("net.ipv4.tcp_mem: not readable here, needed 900000 1200000 1800000: ")
    assert result.stderr.endswith(f"{host}\n")
    assert (machine.proc_sys / "fs/file-max").read_text() == "900000\n"


def test_a_setting_that_may_not_be_written_is_said_so_and_the_others_are_set(machine: Machine) -> None:
    # Read-only even for root, and a number that is too low.
    read_only = Path("/proc/sys/kernel/cap_last_cap")
    (machine.proc_sys / "net/core/somaxconn").unlink()
    (machine.proc_sys / "net/core/somaxconn").symlink_to(read_only)
    result = machine.run("apply")
    assert result.returncode == REFUSED
    (line,) = (line for line in result.stderr.splitlines() if "nofile" not in line)
    assert "needed 4096, not writable here: give it to the container as it is made" in line
    assert "--sysctl net.core.somaxconn='4096'" in line
    assert (machine.proc_sys / "fs/file-max").read_text() == "900000\n"
    assert "somaxconn" not in machine.state.read_text()
    assert machine.run("revert").returncode == 0
    assert (machine.proc_sys / "fs/file-max").read_text() == SMALL["fs/file-max"]


def test_apply_says_when_the_kernel_keeps_another_value(machine: Machine) -> None:
    # Takes any number, keeps some of its bits; it is the script's own process that it belongs to.
    (machine.proc_sys / "fs/file-max").unlink()
    (machine.proc_sys / "fs/file-max").symlink_to("/proc/self/coredump_filter")
    result = machine.run("apply")
    assert result.returncode == REFUSED
    assert re.search(r"^fs\.file-max: .* -> 900000, but the kernel kept 0", result.stderr, re.MULTILINE)


def test_revert_says_when_the_kernel_keeps_another_value(machine: Machine) -> None:
    machine.state.parent.mkdir()
    machine.state.write_text("fs.file-max=900000\n")
    (machine.proc_sys / "fs/file-max").unlink()
    (machine.proc_sys / "fs/file-max").symlink_to("/proc/self/coredump_filter")  # see above
    result = machine.run("revert")
    assert result.returncode == REFUSED
    assert result.stderr.startswith("fs.file-max: could not put back 900000, it is 0")


def test_what_cannot_be_put_back_stays_remembered(machine: Machine) -> None:
    machine.run("apply")
    somaxconn = machine.proc_sys / "net/core/somaxconn"
    somaxconn.unlink()
    somaxconn.symlink_to("/proc/sys/kernel/cap_last_cap")
    result = machine.run("revert")
    assert result.returncode == REFUSED
    assert result.stderr.startswith("net.core.somaxconn: could not put back 128, it is ")
    assert machine.state.read_text() == "net.core.somaxconn=128\n"
    somaxconn.unlink()
    somaxconn.write_text("4096\n")
    assert machine.run("revert").returncode == 0
    assert machine.values() == SMALL


def test_nothing_is_changed_if_it_cannot_be_remembered(machine: Machine) -> None:
    machine.state.parent.write_text("a file where the directory should be")
    result = machine.run("apply")
    assert result.returncode == REFUSED
    assert "which revert needs" in result.stderr
    assert machine.values() == SMALL


@pytest.mark.parametrize(
    "word", ["0", "-1", "1e5", "K", "1.5M", "4kk", "11M", "", "007", "10000001", "9" * 30]
)
def test_a_number_of_connections_that_is_none_is_refused(machine: Machine, word: str) -> None:
    for script in ("check", "apply"):
        result = machine.run(script, "-c", word)
        assert (result.returncode, result.stdout) == (USAGE, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"{script}: -c wants a number of connections from 1 to 10000000 ")
        assert f", not '{word}';" in line


@pytest.mark.parametrize(
    ("word", "number"), [("400k", 400_000), ("400K", 400_000), ("2M", 2_000_000), ("7", 7)]
)
def test_a_number_may_be_in_thousands_and_millions(machine: Machine, word: str, number: int) -> None:
    assert json.loads(machine.run("check", "--json", "-c", word).stdout)["connections"] == number


@pytest.mark.parametrize("arguments", [["--nonsense"], ["-c"], ["word"]])
def test_an_unknown_argument_is_refused(machine: Machine, arguments: list[str]) -> None:
    for script in ("check", "apply", "revert"):
        result = machine.run(script, *arguments)
        assert (result.returncode, result.stdout) == (USAGE, "")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["check", "apply", "revert", "addresses"])
def test_help_names_usage_and_exit_codes(machine: Machine, script: str) -> None:
    result = machine.run(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: sysconfig/{script} ")
    assert "\nexit codes: 0 " in result.stdout


def test_the_tuning_page_has_what_check_asks_for(machine: Machine) -> None:
    """Its table: | setting | stock | for 100,000 | for 400,000 | for 1,000,000 | why | symptom |"""
    page = (CHECKOUT / "docs/tuning.md").read_text()
    documented = {
        name: [cell.strip().replace(",", "") for cell in cells.split("|")[1:4]]
        for name, cells in re.findall(r"^\| `([a-z0-9_.-]+)`[^|]*\|(.*)\|$", page, re.MULTILINE)
    }
    needed = [all_judged(machine, "-c", size) for size in ("100000", "400000", "1000000")]
    assert documented == {
        name: [column[name]["needed"].replace(",", "") for column in needed] for name in needed[0]
    }


def test_the_kernel_takes_and_gives_back_what_a_network_namespace_has_of_its_own(
    machine: Machine, namespace: str
) -> None:
    own = ("ip_local_reserved_ports", "ip_local_port_range", "tcp_max_syn_backlog", "tcp_rmem", "tcp_wmem")
    paths = [*(f"net/ipv4/{name}" for name in own), "net/core/somaxconn"]
    for name in paths:
        (machine.proc_sys / name).unlink()
        (machine.proc_sys / name).symlink_to(f"/proc/sys/{name}")
    inside = ("ip", "netns", "exec", namespace)
    machine.shell = inside

    def in_namespace(command: str) -> str:
        return subprocess.run(
            [*inside, "sh", "-c", command, "sh", *(f"/proc/sys/{name}" for name in paths)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    in_namespace(
        "echo 9000-9005,9100 >$1; echo 40000 50000 >$2; echo 256 >$3; echo 4096 8192 16384 >$4;"
        "echo 4096 8192 16384 >$5; echo 128 >$6"
    )
    before = in_namespace('cat "$@"')
    outside = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()

    assert machine.run("apply").returncode == 0
    assert in_namespace('cat "$@"').splitlines() == [
        "5557,8000,8089,9000-9005,9100",
        "1024\t65535",
        "4096",
        "4096\t32768\t32768",
        "4096\t16384\t32768",
        "4096",
    ]
    assert machine.run("apply").stdout.endswith("nothing to change for 400000 connections\n")
    assert machine.run("revert").returncode == 0
    assert in_namespace('cat "$@"') == before
    assert Path("/proc/sys/net/ipv4/ip_local_port_range").read_text() == outside
