"""sysconfig/apply --persist and revert: the files that outlive a reboot, on the layouts of distributions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sysconfig.fake_root import SMALL, Machine

REFUSED, NOT_ROOT = 3, 4

SYSCTL = "etc/sysctl.d/90-parked.conf"
LIMITS = "etc/security/limits.d/90-parked.conf"
SYSTEMD = "etc/systemd/system.conf.d/90-parked.conf"
SAVED = "var/lib/parked-sysconfig/saved"

#: Directories, and files that end in a newline, as the distribution makes them.
LAYOUTS = {
    "Debian": ("etc/sysctl.d/", "etc/security/limits.d/", "etc/systemd/", "run/systemd/system/"),
    "RHEL": ("etc/sysctl.d/99-sysctl.conf", "etc/sysctl.conf", "etc/security/", "run/systemd/system/"),
    "Alpine": ("etc/sysctl.d/", "etc/sysctl.conf"),
    "bare": (),
}
#: Which files a limit of descriptors goes to.
LIMIT_FILES = {"Debian": {LIMITS, SYSTEMD}, "RHEL": {LIMITS, SYSTEMD}, "Alpine": set(), "bare": set()}


def lay_out(machine: Machine, layout: str) -> None:
    for name in LAYOUTS[layout]:
        path = machine.root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("# the distribution's\n")


def low_limit(machine: Machine, shell: tuple[str, ...]) -> None:
    machine.shell = ("sh", "-c", 'ulimit -n 2000; exec "$@"', "sh", *shell)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_revert_takes_away_what_persist_wrote_and_leaves_every_byte_as_it_was(
    machine: Machine, shell: tuple[str, ...], layout: str
) -> None:
    lay_out(machine, layout)
    low_limit(machine, shell)
    everything = ("etc", "run", "var", "proc")
    before = machine.files(*everything)

    applied = machine.run("apply", "--persist")
    assert applied.returncode == (0 if LIMIT_FILES[layout] else REFUSED), applied
    after = machine.files(*everything)
    new = {name for name in set(after) - set(before) if after[name] is not None and name.startswith("etc/")}
    assert new == {SYSCTL, *LIMIT_FILES[layout]}

    second = machine.run("apply", "--persist")
    assert second.returncode == applied.returncode
    assert machine.files(*everything) == after
    assert "->" not in second.stdout
    assert "written" not in second.stdout

    shutil.rmtree(machine.root / "run/parked-sysconfig", ignore_errors=True)  # as a reboot does
    reverted = machine.run("revert")
    assert (reverted.returncode, reverted.stderr) == (0, "")
    assert machine.files(*everything) == before


def test_the_files_say_what_was_raised_and_nothing_else(machine: Machine) -> None:
    lay_out(machine, "Debian")
    machine.write("fs/file-max", "9000000\n")
    low_limit(machine, ())
    assert machine.run("apply", "--persist").returncode == 0
    lines = (machine.root / SYSCTL).read_text().splitlines()
    assert lines[0].startswith("# Written by sysconfig/apply --persist")
    assert lines[1:4] == [
        "net.ipv4.ip_local_reserved_ports = 5557,8000,8089",
        "net.ipv4.ip_local_port_range = 1024 65535",
        "net.core.somaxconn = 4096",
    ]
    assert "net.ipv4.tcp_mem = 900000 1200000 1800000" in lines
    assert not any("file-max" in line for line in lines)
    assert (machine.root / LIMITS).read_text().splitlines()[1:] == [
        "* hard nofile 6750",
        "root hard nofile 6750",
    ]
    # Never below systemd's own default.
    assert (machine.root / SYSTEMD).read_text().splitlines()[1:] == [
        "[Manager]",
        "DefaultLimitNOFILE=1024:524288",
    ]


def test_a_limit_that_is_high_enough_is_not_persisted(machine: Machine) -> None:
    lay_out(machine, "Debian")
    assert machine.run("apply", "--persist", "-c", "1000").returncode == 0
    assert (machine.root / SYSCTL).exists()
    assert not (machine.root / LIMITS).exists()
    assert not (machine.root / SYSTEMD).exists()


def test_where_nothing_is_too_low_nothing_is_written(machine: Machine) -> None:
    machine.run("apply", "-c", "1000")
    (machine.root / "run/parked-sysconfig/saved").unlink()
    before = machine.files("etc", "var")
    result = machine.run("apply", "--persist", "-c", "1000")
    assert (result.returncode, result.stdout) == (0, "nothing to change for 1000 connections\n")
    assert machine.files("etc", "var") == before


def test_what_was_raised_before_is_persisted_too_and_goes_back_to_the_first_values(machine: Machine) -> None:
    machine.run("apply", "-c", "50000")
    assert machine.run("apply", "--persist", "-c", "50000").stdout == f"/{SYSCTL}: written\n"
    assert "fs.file-max = 200000\n" in (machine.root / SYSCTL).read_text()
    machine.run("apply", "--persist")
    assert "fs.file-max = 900000\n" in (machine.root / SYSCTL).read_text()
    assert machine.run("revert").returncode == 0
    assert machine.values() == SMALL


def test_a_smaller_size_lowers_no_limit_that_was_persisted(machine: Machine) -> None:
    lay_out(machine, "Debian")
    low_limit(machine, ())
    machine.run("apply", "--persist", "-c", "2M")
    before = machine.files("etc")
    assert "* hard nofile 31750\n" in str(before[LIMITS])
    machine.run("apply", "--persist", "-c", "400k")
    assert machine.files("etc") == before


def test_a_file_of_somebody_else_is_left_alone(machine: Machine) -> None:
    theirs = machine.root / SYSCTL
    theirs.parent.mkdir()
    theirs.write_text("vm.swappiness = 1\n")
    result = machine.run("apply", "--persist")
    assert result.returncode == REFUSED
    assert f"/{SYSCTL}: is there and not ours, left as it is" in result.stderr
    assert machine.run("revert").returncode == 0
    assert theirs.read_text() == "vm.swappiness = 1\n"


def test_a_file_that_was_made_somebodys_own_outlives_the_revert(machine: Machine) -> None:
    machine.run("apply", "--persist")
    (machine.root / SYSCTL).write_text("vm.swappiness = 1\n")
    result = machine.run("revert")
    assert result.returncode == 0
    assert f"/{SYSCTL}: left, its first line is no longer ours" in result.stderr
    assert (machine.root / SYSCTL).read_text() == "vm.swappiness = 1\n"
    assert machine.values() == SMALL


def test_another_file_that_sets_the_same_is_named(machine: Machine) -> None:
    lay_out(machine, "RHEL")
    (machine.root / "etc/sysctl.conf").write_text("net.core.somaxconn=128\n#fs.file-max=1\n")
    result = machine.run("apply", "--persist")
    assert result.stderr == (
        "note: net.core.somaxconn is also set in /etc/sysctl.conf, which may win at boot\n"
    )


def test_a_dry_run_writes_nothing_and_names_the_files(machine: Machine) -> None:
    lay_out(machine, "Debian")
    low_limit(machine, ())
    before = machine.files("etc", "run", "var", "proc")
    dry = machine.run("apply", "--persist", "--dry-run")
    assert dry.returncode == 0
    assert all(f"/{name}: would be written\n" in dry.stdout for name in (SYSCTL, LIMITS, SYSTEMD))
    assert machine.files("etc", "run", "var", "proc") == before

    machine.run("apply", "--persist")
    before = machine.files("etc", "run", "var", "proc")
    dry = machine.run("revert", "--dry-run")
    assert all(f"/{name}: would be removed\n" in dry.stdout for name in (SYSCTL, LIMITS, SYSTEMD))
    assert machine.files("etc", "run", "var", "proc") == before


def test_where_no_file_gives_descriptors_it_is_said_what_does(machine: Machine) -> None:
    lay_out(machine, "Alpine")
    low_limit(machine, ())
    result = machine.run("apply", "--persist")
    assert result.returncode == REFUSED
    assert "with OpenRC: rc_ulimit='-n 6750' in /etc/rc.conf" in result.stderr


@pytest.mark.skipif(not shutil.which("busybox"), reason="no busybox")
def test_busybox_alone_is_enough(machine: Machine, tmp_path: Path) -> None:
    applets = tmp_path / "applets"
    applets.mkdir()
    subprocess.run(["busybox", "--install", "-s", str(applets)], check=True)
    stubs = machine.path.split(":")[0]
    machine.path = f"{stubs}:{applets}"
    machine.shell = (str(applets / "sh"),)
    before = machine.files("etc", "run", "var", "proc")
    assert machine.run("check").returncode == 1
    assert machine.run("apply", "--persist").returncode == 0
    assert machine.run("check").stdout.endswith("nothing is too low for 400000 connections\n")
    reverted = machine.run("revert")
    assert (reverted.returncode, reverted.stderr) == (0, "")
    assert machine.files("etc", "run", "var", "proc") == before


@pytest.mark.parametrize("loader", [("sysctl", "-p"), ("busybox", "sysctl", "-p")], ids=" ".join)
def test_what_reads_the_file_at_boot_takes_its_form(
    machine: Machine, namespace: str, tmp_path: Path, loader: tuple[str, ...]
) -> None:
    if not shutil.which(loader[0]):
        pytest.skip(f"no {loader[0]}")
    machine.run("apply", "--persist")
    own = ("net.ipv4.ip_local_", "net.core.somaxconn", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem")
    lines = [line for line in (machine.root / SYSCTL).read_text().splitlines() if line.startswith(own)]
    assert len(lines) == 5
    file = tmp_path / "of-the-namespace.conf"  # the others are the host's
    file.write_text("\n".join(lines) + "\n")

    def inside(*command: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", namespace, *command], check=True, capture_output=True, text=True
        ).stdout

    inside(*loader, str(file))
    for line in lines:
        name, value = line.split(" = ")
        assert inside("cat", f"/proc/sys/{name.replace('.', '/')}").split() == value.split()
