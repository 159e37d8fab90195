"""What the scripts take for a machine: a directory with its own /proc/sys, /etc, /run and /var/lib."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SYSCONFIG = Path(__file__).resolve().parents[2] / "sysconfig"

#: What a small machine has, byte for byte as the kernel shows it.
SMALL = {
    "net/ipv4/ip_local_reserved_ports": "\n",
    "net/ipv4/ip_local_port_range": "32768\t60999\n",
    "net/core/somaxconn": "128\n",
    "net/ipv4/tcp_syncookies": "0\n",
    "net/ipv4/tcp_max_syn_backlog": "512\n",
    "net/core/netdev_max_backlog": "1000\n",
    "net/ipv4/tcp_mem": "22000\t29000\t44000\n",
    "net/ipv4/tcp_rmem": "4096\t8192\t6291456\n",
    "net/ipv4/tcp_wmem": "4096\t4096\t16384\n",
    "fs/file-max": "100000\n",
    "fs/nr_open": "1024\n",
    "net/netfilter/nf_conntrack_max": "65536\n",
}


class Machine:
    """Scripts that run against files below a root of their own, as a user that they believe to be root."""

    def __init__(self, folder: Path, uid: int = 0) -> None:
        self.root = folder / "a root"
        self.proc_sys = self.root / "proc/sys"
        self.state = self.root / "run/parked-sysconfig/saved"
        self.shell: tuple[str, ...] = ()
        for name, value in SMALL.items():
            self.write(name, value)
        for directory in ("run", "var/lib", "etc"):
            (self.root / directory).mkdir(parents=True)
        stubs = folder / "bin"
        stubs.mkdir()
        (stubs / "id").write_text(f"#!/bin/sh\necho {uid}\n")
        (stubs / "id").chmod(0o755)
        self.path = f"{stubs}:{os.environ['PATH']}"

    def write(self, name: str, value: str) -> None:
        path = self.proc_sys / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)

    def values(self) -> dict[str, str]:
        return {name: (self.proc_sys / name).read_text() for name in SMALL}

    def files(self, *below: str) -> dict[str, str | None]:
        """Every file below these directories with its content, every directory with None."""
        paths = (path for top in below for path in sorted((self.root / top).rglob("*")))
        return {
            str(path.relative_to(self.root)): path.read_text() if path.is_file() else None for path in paths
        }

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.shell, str(SYSCONFIG / script), *arguments],
            env={"PATH": self.path, "SYSCONFIG_ROOT": str(self.root)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
