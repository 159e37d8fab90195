"""Results folders as a stranger may have made them, against report, verify and compare.

Values of `run.json` and `summary.json` are exchanged for odd ones, and bytes of all files are changed. What
must hold for each: no exception, one of the exit codes, a line on standard error where there is no run, no
control character on either output, and an end within a time that no honest folder needs.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from parked.loadtest.report import compare, report, verify
from tests.drills import fuzzing
from tests.loadtest.runs import write_run

#: Seconds for one command, on a machine that does other things too; plots take a second.
PATIENCE_S: Final = 15.0
MOST_BYTES: Final = 1_000_000
ODD: Final = (
    *(None, True, -1, 0, 1, 2**70, -(2**70), 1e300, -1e18, 1e-300, float("inf"), float("nan")),
    *("", "x", "\\x1b[2J\\n", "9" * 5000, "\\ud800", "<!--<script>", "../../etc/passwd", "=1+1", "http://["),
    *([], {}, [[]], [None], {"": None}, [0] * 1000, {"a": {"a": {"a": {}}}}),
)
TOKENS: Final = [
    *(
        b"{",
        b"}",
        b"[" * 2000,
        b'"',
        b",",
        b":",
        b"null",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 400,
        b"\\ud800",
    ),
    *(b"\0", b"\xff\xfe", b"\r\n", b",,,,", b"hold", b"ramp", b"-1", b"1.5", b"\x1b[2J", b"x" * 3000),
]
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Case(dict[str, bytes]):
    """Changed files by name, and what to do with them."""

    command = "verify"


class Folders:
    def __init__(self) -> None:
        self._temporary = TemporaryDirectory(prefix="fuzz-")
        folder = Path(self._temporary.name)
        self._good = write_run(folder / "good")
        count = json.loads((self._good / "run.json").read_text())["totals"]["requests"]
        (self._good / "locust_stats.csv").write_text(
            "Type,Name,Request Count,Failure Count,Average Content Size,50%,90%,99%,100%\n"
            f"GET,/,{count},0,5,1,2,3,4\n,Aggregated,{count},0,5,1,2,3,4\n"
        )
        (self._good / "locust_failures.csv").write_text(
            'Method,Name,Error,Occurrences\nGET,/,"status, 500",3\n'
        )
        with contextlib.redirect_stdout(io.StringIO()):
            report.main([str(self._good)])
        self._folder = folder / "run"
        self.seeds = [
            (path.name, path.read_bytes())
            for path in self._good.iterdir()
            if path.suffix in (".json", ".csv")
        ]

    def mutate(self, generator: random.Random) -> Case:
        case = Case()
        case.command = "report" if generator.random() < 0.01 else generator.choice(("verify", "compare"))
        for _ in range(generator.choice((1, 1, 2))):
            name, content = generator.choice(self.seeds)
            if name.endswith(".json") and generator.random() < 0.8:
                value = json.loads(content)
                for _ in range(generator.randint(1, 3)):
                    fuzzing.exchange(generator, value, ODD)
                case[name] = json.dumps(value).encode()
            else:
                case[name] = fuzzing.mutate_bytes(generator, [content], TOKENS, MOST_BYTES)
        return case

    def examine(self, _generator: random.Random, case: Case) -> tuple[str, str]:
        self._folder.mkdir(exist_ok=True)
        for name, content in [*self.seeds, *case.items()]:
            (self._folder / name).write_bytes(content)
        out, err = io.StringIO(), io.StringIO()
        began = time.process_time()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = self._run(case.command)
        except Exception as error:
            return "raised", f"{case.command}: {type(error).__name__}: {error}"[:500]
        if time.process_time() - began > PATIENCE_S:
            return "slow", f"{case.command} took {time.process_time() - began:.0f} s of CPU"
        outcome = f"{case.command} {code}"
        if code not in (0, 1, 2, 3):
            return outcome, f"the exit code of {case.command} is {code}"
        if code == 2 and err.getvalue().count("\n") != 1:
            return outcome, f"{case.command} says {err.getvalue()!r}"
        if found := _CONTROL.search(out.getvalue() + err.getvalue()):
            return outcome, f"{case.command} writes {found[0]!r}"
        return outcome, ""

    def _run(self, command: str) -> int:
        if command == "verify":
            return verify.main([str(self._folder)])
        if command == "report":
            return report.main([str(self._folder)])
        page = str(self._folder / "page.html")
        return compare.main([str(self._good), str(self._folder), "--force", "--page", page])


TARGET = Folders()
