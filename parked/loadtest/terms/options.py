"""The options that ./run_test and the locustfile have in common: one table for both."""

from __future__ import annotations

import dataclasses
import os
import types
from typing import TYPE_CHECKING, Any

from parked.loadtest.terms import values, variables
from parked.loadtest.terms.checkout import SERVER

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

#: Of the rate that --adaptive begins with, the least that it falls to.
LEAST_PACE = 0.12


def name_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


@dataclasses.dataclass(frozen=True)
class Option:
    """One option. Its value stays the text that was given, since Locust sends it to its workers."""

    flag: str
    parse: Callable[[str], Any]
    metavar: str
    help: str  #: what it means, with its unit, without the default
    default: str | None  #: of the locustfile
    unset: str = ""  #: what happens without a default
    of_run_test: str | None = None  #: its default there, if that is another
    variable: str | None = None  #: environment variable that is as good as the option
    in_web_ui: bool = False  #: whether Locust's form asks for it

    @property
    def name(self) -> str:
        """As an attribute of what is parsed."""
        return name_of(self.flag)

    def add_to_locust(self, parser: Any) -> None:
        """To Locust's own parser, which reads the environment and knows `include_in_web_ui`."""
        parser.add_argument(
            self.flag,
            type=values.checked(self.parse),
            default=self.default,
            metavar=self.metavar,
            env_var=self.variable,
            include_in_web_ui=self.in_web_ui,
            help=self._told(self.default),
        )

    def add_to_run_test(self, parser: argparse.ArgumentParser) -> None:
        default = self.default if self.of_run_test is None else self.of_run_test
        parser.add_argument(
            self.flag,
            type=values.checked(self.parse),
            default=os.environ.get(self.variable or "") or default,
            metavar=self.metavar,
            help=self._told(default),
        )

    def _told(self, default: str | None) -> str:
        otherwise = default or self.unset
        variable = f"{self.variable}, or " if self.variable else ""
        return f"{self.help} (default: {variable}{otherwise})"


#: Names of those that a script has as options of its own: what they are given is not for us.
OF_SCRIPT: set[str] = set()


def ours(chosen: Any) -> Any:
    """What was chosen, with the defaults of our options in place of a script's own of the same names."""
    if not OF_SCRIPT:
        return chosen
    defaults = {option.name: option.default for option in TABLE} | {"insecure": False, "adaptive": False}
    return types.SimpleNamespace(**vars(chosen) | {name: defaults[name] for name in OF_SCRIPT})


TABLE = (
    Option(
        "--think",
        values.think_time,
        "MIN:MAX",
        "seconds between a response and the next request of a connection, drawn evenly",
        "10:90",
        variable="PARKED_THINK",
        in_web_ui=True,
    ),
    Option(
        "--length",
        values.length,
        "MIN:MAX",
        "characters of a response, drawn evenly and checked",
        "1024:10240",
        variable="PARKED_LENGTH",
        in_web_ui=True,
    ),
    Option(
        "--hold",
        values.duration,
        "DURATION",
        "end the test this long after all connections are established, such as 30s or 5m",
        None,
        unset="--run-time decides",
        of_run_test="60s",
    ),
    Option(
        "--server-metrics",
        values.metrics_address,
        "ADDRESS",
        f"HOST:PORT or unix:/PATH of the server's own counters ({SERVER} --metrics): they become columns of "
        "samples.csv and a witness",
        "",
        unset="none, or a socket of its own where the run starts the server",
    ),
    Option(
        "--metrics",
        values.listen_address,
        "ADDRESS",
        "serve this load test's own /metrics for Prometheus at HOST:PORT",
        None,
        unset="not",
        variable=variables.METRICS,
    ),
    Option(
        "--results",
        str,
        "DIR",
        "folder for samples, log, summary, page and plots",
        None,
        unset="results/<UTC time>-<connections>; in plain Locust none",
    ),
)


#: Help of --insecure, which has no value.
INSECURE = "take any certificate of an https:// server (default: it must be valid for the server's name)"


@dataclasses.dataclass(frozen=True)
class RequestOption:
    """One option of the built-in locustfile's request; none of them has a default."""

    flag: str
    metavar: str
    help: str
    parse: Callable[[str], Any] = str
    several: bool = False

    @property
    def name(self) -> str:
        """As an attribute of what is parsed."""
        return name_of(self.flag)

    def add_to(self, parser: Any, **more: Any) -> None:
        action = "append" if self.several else "store"
        parser.add_argument(
            self.flag,
            action=action,
            default=[] if self.several else None,
            type=values.checked(self.parse),
            metavar=self.metavar,
            help=self.help,
            **more,
        )

    def words(self, value: Any) -> list[str]:
        """The option as it is given to Locust; a value that begins with a dash needs the equals sign."""
        return [f"{self.flag}={one}" for one in (value if self.several else [value]) if one]


REQUEST = (
    RequestOption("--path", "PATH", "ask for this path and query, without --length"),
    RequestOption("--method", "METHOD", "with this method (default: GET, with --body POST)", values.method),
    RequestOption(
        "--header",
        "'NAME: VALUE'",
        "with this header field; may be repeated",
        values.header,
        several=True,
    ),
    RequestOption("--body", "TEXT", "with this body"),
    RequestOption(
        "--expect-status",
        "CODE",
        "the only status that is right (default: any success or redirection)",
        values.status,
    ),
)

#: Those of them that users have who wait for what is sent.
WAITING = tuple(option for option in REQUEST if option.name in ("path", "header"))

#: What stands in a path for the seconds after which the server is to answer.
SECONDS = "{seconds}"
#: What users ask the demo application for that wait for what is sent, unless --path says otherwise.
PATHS = {"longpoll": f"/poll?seconds={SECONDS}", "events": "/events?every=30"}
