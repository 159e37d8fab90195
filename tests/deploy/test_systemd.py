"""deploy/systemd and deploy/sysctl.d, as the programs that will read them judge them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
UNITS = CHECKOUT / "deploy/systemd"
INSTALLED = "/opt/parked/bin/parked-server"
#: Of systemd-analyze security: 0 is shut off from everything, 10 from nothing. Found with systemd 252: 1.5.
EXPOSURE_MAX = 2.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze (Debian: apt install systemd)"
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program in ExecStart= that is there: verify looks for it."""
    for unit in UNITS.iterdir():
        text = unit.read_text()
        assert unit.suffix != ".service" or INSTALLED in text
        (tmp_path / unit.name).write_text(text.replace(INSTALLED, sys.executable))
    return tmp_path


def verify(units: Path) -> str:
    """What systemd has to say; nothing if all is well."""
    paths = sorted(str(unit) for unit in units.iterdir())
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, check=False
    )
    # Other units of this machine are read too, and are not ours to judge.
    return "".join(line for line in result.stderr.splitlines(True) if str(units) in line or "parked" in line)


@needs_systemd
def test_systemd_finds_nothing_wrong_in_the_units(units: Path) -> None:
    assert verify(units) == ""


@needs_systemd
def test_systemd_would_find_what_is_wrong(units: Path) -> None:
    with (units / "parked-server.service").open("a") as unit:
        unit.write("[Service]\nLimitNOFILES=1\n")
    assert "LimitNOFILES" in verify(units)


@needs_systemd
def test_the_service_is_shut_off_from_what_it_does_not_need(units: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(units / "parked-server.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"exposure level for parked-server\.service: ([\d.]+)", result.stdout)
    assert found, result
    assert float(found[1]) <= EXPOSURE_MAX


def test_the_kernel_settings_are_those_that_check_asks_for() -> None:
    check = subprocess.run(
        [CHECKOUT / "sysconfig/check", "-c", "400000", "--json"], capture_output=True, text=True, check=False
    )
    needed = {row["setting"]: row["needed"] for row in json.loads(check.stdout)["settings"]}
    lines = (CHECKOUT / "deploy/sysctl.d/60-parked.conf").read_text().splitlines()
    ours = dict(line.removeprefix("-").split(" = ") for line in lines if line and not line.startswith("#"))
    assert ours
    if "net.netfilter.nf_conntrack_max" not in needed:  # its module is not loaded here
        del ours["net.netfilter.nf_conntrack_max"]
    assert ours == {name: needed.get(name) for name in ours}
