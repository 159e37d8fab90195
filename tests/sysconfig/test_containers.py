"""check, apply and revert in a container: some settings are its own, the others the host's or read-only.

They run on the real /proc/sys.  What could reach the machine's own settings is cut off by the kernel first:
by a read-only mount, or by not being the machine's root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sysconfig.fake_root import SYSCONFIG

REFUSED = 3

#: A mount namespace with a /run of its own and /proc/sys read-only, as container engines make it.  The last
#: command proves it, before anything else runs.
READ_ONLY = """
set -e
mount --make-rprivate /
mount -t tmpfs none /run
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
! test -w /proc/sys/fs/file-max
"""
#: The same for somebody who is root in a user namespace only: network settings can be written there.
ROOTLESS = """
set -e
mount -t tmpfs none /run
! test -w /proc/sys/fs/file-max
"""
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def in_container(isolate: tuple[str, ...], prepare: str, script: str) -> str:
    """What `script` prints inside; skips where no such container can be made."""
    if os.geteuid() != 0 or not shutil.which(isolate[0]) or not shutil.which("unshare"):
        pytest.skip("needs root, unshare and setpriv")
    command = [*isolate, "sh", "-c"]
    tried = subprocess.run([*command, prepare], capture_output=True, text=True, check=False, timeout=30)
    readable = subprocess.run([*command, f"test -x {SYSCONFIG}/check"], check=False, timeout=30)
    if tried.returncode or readable.returncode:
        pytest.skip(f"no such container can be made here: {tried.stderr.strip()}")
    return subprocess.run(
        [*command, f"{prepare}\nset +e\ncd {SYSCONFIG}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout


def test_where_proc_is_read_only_everything_is_refused_with_what_the_host_must_do() -> None:
    low = "echo 128 >/proc/sys/net/core/somaxconn\n"  # the namespace's own
    shown = in_container(
        ("unshare", "--mount", "--net"),
        low + READ_ONLY,
        "./check -c 1M; ./apply -c 1M 2>&1; echo code $?\n"
        "ls /run | grep parked; cat /proc/sys/net/core/somaxconn",
    )
    assert (
        "fix:     give it to the container as it is made (--sysctl net.core.somaxconn='4096', in Kubernetes"
        " securityContext.sysctls), or as root outside of it"
    ) in shown
    assert "net.core.somaxconn: 128, needed 4096, not writable here: give it to the container" in shown
    # Not there in a network namespace.
    assert (
        "net.ipv4.tcp_mem: not readable here, needed 2250000 3000000 4500000: the host must set it" in shown
    )
    assert shown.endswith(f"code {REFUSED}\n128\n")  # nothing changed, nothing remembered


def test_root_of_a_user_namespace_sets_its_own_and_gets_them_back_to_the_bit() -> None:
    settings = "/proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_local_* /proc/sys/net/ipv4/tcp_*mem"
    show = f"grep -s . {settings}; cat /proc/sys/fs/file-max /proc/sys/fs/nr_open"
    shown = in_container(
        (*NOBODY, "unshare", "--user", "--map-root-user", "--net", "--mount"),
        ROOTLESS,
        "echo 128 >/proc/sys/net/core/somaxconn; echo 4096 8192 9000 >/proc/sys/net/ipv4/tcp_rmem\n"
        f"echo BEFORE; {show}; echo APPLY; ./apply -c 5M 2>/dev/null; echo code $?; echo RAISED; {show}\n"
        f"echo AGAIN; ./apply -c 5M 2>/dev/null; echo REVERT; ./revert; echo code $?; echo AFTER; {show}",
    )
    parts = {part.split("\n")[0]: part.split("\n", 1)[1] for part in _split(shown)}
    assert parts["BEFORE"] == parts["AFTER"]
    assert parts["BEFORE"] != parts["RAISED"]
    assert "net.core.somaxconn: 128 -> 4096\n" in parts["APPLY"]
    assert "net.ipv4.tcp_rmem: 4096 8192 9000 -> 4096 32768 32768\n" in parts["APPLY"]
    assert parts["APPLY"].endswith(f"code {REFUSED}\n")  # fs.file-max is the host's
    assert "->" not in parts["AGAIN"]
    assert parts["REVERT"].endswith("code 0\n")


def _split(shown: str) -> list[str]:
    names = ("BEFORE", "APPLY", "RAISED", "AGAIN", "REVERT", "AFTER")
    places = [shown.index(f"{name}\n") for name in names]
    return [shown[start:end] for start, end in zip(places, [*places[1:], len(shown)], strict=True)]


def test_check_knows_whose_each_setting_is(namespace: str) -> None:
    """The scope in the table against the kernel's own view: what a network namespace has and may write."""
    result = subprocess.run(
        ["ip", "netns", "exec", namespace, str(SYSCONFIG / "check"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = {row["setting"]: row for row in json.loads(result.stdout)["settings"]}
    for name, row in rows.items():
        path = Path("/proc/sys", *name.split("."))
        write = f"cat {path} >{path}"  # the value that is there: changes nothing, shows whether it could
        if name.startswith("net."):
            own = subprocess.run(
                ["ip", "netns", "exec", namespace, "sh", "-c", write], capture_output=True, check=False
            )
            assert (own.returncode == 0) == (row["scope"] == "namespace"), name
        else:
            assert row["scope"] == ("process" if name == "nofile" else "host"), name
