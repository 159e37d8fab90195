"""Messages to the master of a run as any stranger may send them, mutated as data and as bytes.

What must hold for each: the bytes are a message or refused; no message raises where it is taken, or in the
next second of the run; and all figures of that second are finite.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final

import pytest
from locust.event import Events
from locust.rpc.protocol import Message

from parked.loadtest.master import recorder
from parked.loadtest.terms.sample import MESSAGE
from tests.drills import fuzzing
from tests.loadtest.scene import Scene, sample

MOST_BYTES: Final = 20_000
ODD: Final = (
    *(
        None,
        True,
        -1,
        0,
        2**63,
        -(2**63),
        1e300,
        -1e18,
        float("inf"),
        float("nan"),
        "",
        "x" * 3000,
        "\x1b[2J",
    ),
    *(b"", b"\xff" * 50, [], {}, [[]], [None], {"": None}, {"a": {"a": {}}}, [0] * 2000, [1, 2]),
)
TOKENS: Final = [
    bytes([number]) for number in (0, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xCB, 0xCF, 0xDD, 0xDF, 0xFF)
]
#: Seconds of the run that are taken for one in so many messages.
MESSAGES_A_SECOND: Final = 100


class Messages:
    def __init__(self) -> None:
        self._temporary = TemporaryDirectory(prefix="fuzz-")
        patch = pytest.MonkeyPatch()
        patch.setattr(recorder.gevent, "spawn", lambda *_: None)
        self._scene = Scene(Path(self._temporary.name) / "run", patch)
        self._scene.run.end()
        self._scene.environment.events = Events()
        self._scene.runner.register_message = lambda *_: None
        self._recorder = recorder.Recorder(self._scene.environment)
        self._scene.environment.events.test_start.fire()
        self._count = 0
        self.seeds = [sample(), sample(thinks_s=[1.0, 2.0, 2, [[1, 2]]], failures_by_kind={"status": 1})]

    def mutate(self, generator: random.Random) -> bytes:
        data: Any = copy.deepcopy(generator.choice(self.seeds))
        data["unix_time_s"] = 1e9 + self._count
        for _ in range(generator.choice((0, 1, 1, 2))):
            fuzzing.exchange(generator, data, ODD)
        name = generator.choice(("local", "other", "stranger\x1b[2J"))
        whole: bytes = Message(MESSAGE, data, name).serialize()
        if generator.random() < 0.3:
            return fuzzing.mutate_bytes(generator, [whole], TOKENS, MOST_BYTES)
        return whole

    def examine(self, _generator: random.Random, case: bytes) -> tuple[str, str]:
        self._count += 1
        try:
            message = Message.unserialize(case)
        except Exception:  # Locust's listener survives that (parked.loadtest.plugin.strangers)
            return "no message", ""
        if message.type != MESSAGE or not isinstance(message.node_id, str):
            return "another message", ""
        refused = self._recorder._refused.total()
        try:
            self._recorder._take(SimpleNamespace(node_id=message.node_id, data=message.data))
            if self._count % MESSAGES_A_SECOND == 0:
                assert self._recorder._run is not None
                self._scene.now += 1
                with contextlib.redirect_stdout(io.StringIO()):
                    self._recorder._run.second()
                odd = {
                    name: value
                    for name, value in self._recorder._run.row.items()
                    if isinstance(value, float) and not math.isfinite(value)
                }
                if odd:
                    return "odd", f"the second has {odd}"
        except Exception as error:
            return "raised", f"{type(error).__name__}: {error}"[:300]
        return "refused" if self._recorder._refused.total() > refused else "taken", ""


TARGET = Messages()
