"""Namespaces in which a drill may cut, fill and flood what it likes: they end with it (namespaces(7))."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from drill import NOT_HERE

#: Set in the environment of a drill that is in its namespaces.
_INSIDE = "PARKED_DRILL_INSIDE"
#: The two hosts' addresses. They are in no other network: the wire between them has two ends.
NEAR, FAR = "10.99.0.1", "10.99.0.2"


def alone(*kinds: str) -> None:
    """Begin the drill anew in namespaces of its own: "net", "mount". Its processes are always in one."""
    if os.environ.pop(_INSIDE, ""):
        if "net" in kinds:
            call("ip", "link", "set", "lo", "up")
        return
    if os.geteuid() != 0 or not shutil.which("unshare"):
        print(f"not here: namespaces ({', '.join(kinds)}) need root and unshare(1)", file=sys.stderr)
        sys.exit(NOT_HERE)
    os.environ[_INSIDE] = "1"
    flags = (f"--{kind}" for kind in ("pid", *kinds))
    os.execvp(
        "unshare", ["unshare", *flags, "--fork", "--kill-child", "--mount-proc", sys.executable, *sys.argv]
    )


def call(*words: str) -> None:
    if not shutil.which(words[0]):
        print(f"not here: {words[0]} is not installed", file=sys.stderr)
        sys.exit(NOT_HERE)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"not here: {' '.join(words)}: {done.stderr.strip()}", file=sys.stderr)
        sys.exit(NOT_HERE)


class OtherHost:
    """A network namespace at the other end of a wire (veth): FAR there, NEAR here."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        ours = Path("/proc/self/ns/net").readlink()
        theirs = Path(f"/proc/{self._holder.pid}/ns/net")
        deadline = time.monotonic() + 10
        while theirs.readlink() == ours and time.monotonic() < deadline:
            time.sleep(0.01)
        call(
            "ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(self._holder.pid)
        )
        call("ip", "address", "add", f"{NEAR}/24", "dev", "near")
        call("ip", "link", "set", "near", "up")
        call(*self.command("ip", "address", "add", f"{FAR}/24", "dev", "far"))
        call(*self.command("ip", "link", "set", "far", "up"))

    def command(self, *words: str) -> list[str]:
        """That command, over there."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *words]

    def lose(self, share: float) -> None:
        """Drop that share of all packets where they arrive, in both directions.

        With iptables, for tc's netem is not in every kernel; and what netem drops at the sender, TCP there is
        told about.
        """
        chance = ("-m", "statistic", "--mode", "random", "--probability", f"{share:.6f}") if share < 1 else ()
        call("iptables", "-A", "INPUT", "-i", "near", *chance, "-j", "DROP")
        call(*self.command("iptables", "-A", "INPUT", "-i", "far", *chance, "-j", "DROP"))

    def mend(self) -> None:
        call("iptables", "-F", "INPUT")
        call(*self.command("iptables", "-F", "INPUT"))

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
