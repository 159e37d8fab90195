"""Fuzzing for a few seconds or for a night, repeated exactly by its seed.

Targets: request bytes against the server's parser, beside h11 and llhttp; responses against the load test's
client, beside h11; results folders against report, verify and compare; messages against the master of a run.
Several run side by side, each in a process of its own that lets others go first. Findings are printed as
Python literals, and the exit code is 1. Needs what the tests need.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, Final, Protocol

from parked.shared.children import end_with_parent

TARGETS: Final = ("requests", "responses", "folders", "messages")
MOST_FINDINGS: Final = 10
#: By how much they let others go first (nice(2)).
NICE: Final = 10


class Target(Protocol):
    """What is fuzzed."""

    #: Bytes or texts to begin with, good and bad.
    seeds: Sequence[Any]

    def mutate(self, generator: random.Random) -> Any: ...

    def examine(self, generator: random.Random, case: Any) -> tuple[str, str]:
        """The outcome in a word or two, and what is wrong with it; empty if nothing is."""


def mutate_bytes(
    generator: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes], most_bytes: int
) -> bytes:
    """One of *seeds* with a few changes, *tokens* among them."""
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        place = generator.randrange(len(data) + 1)
        kind = generator.randrange(6)
        if kind == 0:
            data[place:place] = generator.choice(tokens)
        elif kind == 1:
            data[place : place + generator.choice((1, 1, 2, 4, 16))] = b""
        elif kind == 2:
            data[place : place + 1] = generator.choice(tokens)
        elif kind == 3:  # a field line or chunk of another one
            lines = bytes(generator.choice(seeds)).split(b"\r\n")
            data[place:place] = generator.choice(lines) + b"\r\n"
        elif kind == 4 and len(data) > 1:
            data[place : place + 1] = bytes([generator.randrange(256)])
        else:
            end = place + generator.randrange(1, 40)
            data[place:place] = data[place:end]
    return bytes(data[:most_bytes])


def cut(generator: random.Random, data: bytes) -> list[bytes]:
    """*data* in a few pieces, none of them empty."""
    places = sorted(generator.randrange(len(data) + 1) for _ in range(generator.randrange(1, 6)))
    bounds = [0, *places, len(data)]
    return [data[start:end] for start, end in pairwise(bounds) if start < end]


def exchange(generator: random.Random, value: Any, odd: Sequence[Any]) -> None:
    """Put something odd in some place of *value*, or take it away."""
    while isinstance(value, dict | list) and value:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = generator.choice(keys)
        if not isinstance(value[key], dict | list) or not value[key] or generator.random() < 0.3:
            if isinstance(value, dict) and generator.random() < 0.2:
                del value[key]
            else:
                value[key] = copy.deepcopy(generator.choice(odd))
            return
        value = value[key]


def run(target: Target, seconds: float, seed: int, say: Callable[[str], None]) -> int:
    """Fuzz for so long; returns the number of findings."""
    generator = random.Random(seed)
    outcomes: Counter[str] = Counter()
    findings = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and findings < MOST_FINDINGS:
        case = target.mutate(generator)
        outcome, wrong = target.examine(generator, case)
        outcomes[outcome] += 1
        if wrong:
            findings += 1
            say(f"FOUND {wrong}\n      {case!r}")
    say(f"{outcomes.total():,} cases, seed {seed}: {dict(outcomes.most_common(20))}, {findings} findings")
    return findings


def run_side_by_side(targets: Sequence[str], options: Sequence[str]) -> int:
    """Returns the number of those with findings."""
    command = [sys.executable, "-P", "-m", "tests.drills.fuzzing", *options, "--target"]
    ends_with_us = functools.partial(end_with_parent, signal.SIGTERM, os.getpid())
    running = [subprocess.Popen([*command, target], preexec_fn=ends_with_us) for target in targets]
    return sum(process.wait() != 0 for process in running)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/drills/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="what to fuzz [all]")
    parser.add_argument("--seconds", type=float, default=60, help="length of each [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers [%(default)s]")
    options = parser.parse_args()
    targets = options.target or TARGETS
    if len(targets) > 1:
        chosen = ["--seconds", str(options.seconds), "--seed", str(options.seed)]
        return 1 if run_side_by_side(targets, chosen) else 0
    (name,) = targets
    os.nice(NICE)
    target = import_module(f"tests.drills.fuzz_{name}").TARGET
    findings = run(target, options.seconds, options.seed, lambda text: print(name, text, flush=True))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
