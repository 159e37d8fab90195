from __future__ import annotations

import shlex
import subprocess
import sys


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource; from parked.shared.descriptors import raise_nofile\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "assert raise_nofile() == hard\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_standard_descriptors_that_are_closed_are_no_other_files() -> None:
    code = (
        "import os, sys; from parked.shared.descriptors import fill_standard\n"
        "fill_standard()\n"
        "print('nobody reads this', sys.stdin.read())\n"
        "assert sys.stdout.fileno() == 1 and not sys.stdout.isatty()\n"
        "sys.stderr.write(' '.join([*(os.readlink(f'/proc/self/fd/{n}') for n in (0, 1)), str(os.dup(0))]))"
    )
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join([sys.executable, '-c', code])} <&- >&-"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.startswith("/dev/null /dev/null ")
    assert int(done.stderr.split()[-1]) > 2
