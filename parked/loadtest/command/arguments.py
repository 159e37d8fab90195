"""`./run_test`: its options, and what they ask for: a run, a part in one, or a plan."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from parked import __version__
from parked.loadtest.command import locustfile
from parked.loadtest.command.settings import Settings
from parked.loadtest.machine.machine import Machine
from parked.loadtest.plan import planning
from parked.loadtest.report.goals import Goal
from parked.loadtest.terms import checkout, options, values, variables
from parked.loadtest.terms.checkout import PROGRAM, SERVER
from parked.loadtest.terms.console import hand_over, say
from parked.loadtest.terms.harmless import for_line
from parked.shared import old_names
from parked.shared.extras import lacks
from parked.shared.private import masked

#: Connections and hold of --quick.
QUICK = (20_000, "30s")
DEFAULT_HOST = "http://127.0.0.1:8000"

#: Options of Locust's that run_test gives it, and what says them here.
OURS = {
    "-u": "-c",
    "--users": "-c",
    "-t": "--hold",
    "--run-time": "--hold",
    "--headless": "--web, or nothing",
    "--autostart": "--web, or nothing",
    "--adaptive": "-r auto",
    "--worker": "--join",
    "--master-host": "--join",
    "--master-bind-host": "--master",
    "--master-bind-port": "--master-port",
    "--expect-workers": "--expect-hosts",
}

#: What a host that joins says itself, by its attributes; all else would be passed over in silence.
OF_WHO_JOINS = {
    "join",
    "join_timeout",
    "processes",
    "locustfile",
    "source_addresses",
    "insecure",
    "force",
}

EPILOG = """\
commands
  report RUN       make summary, page and plots of a run again
  verify RUN...    recompute every figure of runs, and ask their witnesses
  compare A B...   show runs side by side
RUN is a folder, last or previous. Each command has --help. All other options and
words go to Locust: --tags, --exclude-tags, --stop-timeout, a locustfile's own
options, names of user classes.

exit codes
  0  pass
  1  fail: the run is complete, summary.json gives the reasons
  2  an option is wrong
  3  this machine's limits are too low for -c (--force tries anyway)
  4  the host does not resolve, refuses, or is no HTTP server, or
     there are no metrics at --server-metrics
  5  the server or Locust could not be started
  6  the results folder cannot be written
  7  several hosts: one did not join or could not do its part, or there is no master
  130  interrupted; what was measured is in the results folder

environment
  PARKED_SOURCE  as --source-addresses
  PARKED_VENV    where the Python environment is kept (default: .venv)
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s [OPTION]...\n       %(prog)s report RUN | verify RUN... | compare RUN RUN...",
        description="Hold many keep-alive HTTP connections, one request each per 10-90 s; write a report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what is not named in full may be Locust's
    )
    made.add_argument(
        "-c",
        "--connections",
        default="auto",
        type=lambda text: text if text == "auto" else values.count(text),
        metavar="N|auto",
        help="connections to hold; auto: as many as this machine permits, up to 400,000 (default: auto)",
    )
    made.add_argument(
        "-r",
        "--spawn-rate",
        default="auto",
        type=lambda text: text if text == "auto" else values.count(text),
        metavar="R|auto",
        help="connections opened per second; auto: as fast as requests stay on time (default: auto)",
    )
    made.add_argument(
        "--workload",
        default="keepalive",
        choices=tuple(checkout.WORKLOADS),
        help="what each connection does: think and ask (keepalive), wait for an answer that comes after "
        "--think seconds (longpoll), or listen to an event stream (events) (default: keepalive)",
    )
    made.add_argument(
        "--quick", action="store_true", help=f"a first look: -c {QUICK[0]} --hold {QUICK[1]}, under a minute"
    )
    for option in options.TABLE:
        option.add_to_run_test(made)
    _add_request(made)
    _add_outcome(made)
    made.add_argument(
        "--host",
        action="append",
        metavar="URL",
        help="server to test; several (repeated, or with commas) get equal shares of the connections "
        f"(default: what the classes of -f have as host, else {DEFAULT_HOST}, where {SERVER} is started if "
        "nobody listens)",
    )
    made.add_argument("--insecure", action="store_true", help=options.INSECURE)
    made.add_argument(
        "--start-server",
        action="store_true",
        help=f"start {SERVER} at a local --host too, if nobody listens there",
    )
    made.add_argument(
        "--source-addresses",
        default=None,
        type=values.checked(values.source_addresses),
        metavar="LIST",
        help="addresses that this host's connections start from, such as 10.0.0.16/28,10.0.0.40 (default: on "
        "loopback 127.1.0.0/16, elsewhere those that "
        f"{_literally(checkout.sysconfig('addresses'))} gave the interface, or its own)",
    )
    made.add_argument(
        "-f",
        "--locustfile",
        default=None,
        type=Path,
        metavar="FILE",
        help=f"a locustfile (default: {_literally(str(checkout.locustfile()))})",
    )
    made.add_argument(
        "--processes",
        default=0,
        type=values.count,
        metavar="N",
        help="Locust workers (default: what -c asks for)",
    )
    made.add_argument(
        "--web", action="store_true", help="start the test from Locust's web UI instead of at once"
    )
    made.add_argument(
        "--web-port", default=8089, type=_port, metavar="PORT", help="port of the web UI (default: 8089)"
    )
    made.add_argument(
        "--master-port",
        default=5557,
        type=_port,
        metavar="PORT",
        help="port for Locust's workers (default: 5557)",
    )
    several = made.add_argument_group("several hosts (docs/several-hosts.md)")
    several.add_argument(
        "--master",
        nargs="?",
        const="*",
        default="",
        metavar="ADDRESS",
        help="lead a run whose connections come from the hosts that join; listen at ADDRESS (default: all)",
    )
    several.add_argument(
        "--expect-hosts",
        default=1,
        type=values.count,
        metavar="N",
        help="with --master: begin when this many hosts have joined (default: 1)",
    )
    several.add_argument(
        "--join",
        default=None,
        type=_master,
        metavar="MASTER[:PORT]",
        help="take part in the run of the master there, which says all but --processes, -f, --join-timeout, "
        "--source-addresses, --insecure and --force",
    )
    several.add_argument(
        "--join-timeout",
        default="2m",
        type=values.checked(values.duration),
        metavar="DURATION",
        help="how long a master waits for its hosts, and a host for its master (default: 2m)",
    )
    made.add_argument(
        "--plain", action="store_true", help="print a line per second to a terminal too, no live screen"
    )
    made.add_argument(
        "--plan",
        action="store_true",
        help="start nothing: what this machine can hold, which limits are reached first, and what to change "
        "(exit code 0: -c fits, 3: it does not)",
    )
    made.add_argument(
        "--machine",
        default=None,
        type=_machine,
        metavar="KEY=VALUE,...",
        help="with --plan, another machine, such as cores=16,memory=64G,nofile=1M; also ports, file_max, "
        "tcp_mem (pages), conntrack (default: what Linux has)",
    )
    made.add_argument(
        "--print-completion",
        choices=("bash", "zsh"),
        help=f'print what completes these options: eval "$({checkout.COMMAND} --print-completion bash)"',
    )
    made.add_argument("--version", action="store_true", help="print the version and exit")
    made.add_argument("--force", action="store_true", help="run even if limits look too low")
    made.add_argument("--overwrite", action="store_true", help="replace a run in the folder of --results")
    return made


def _literally(text: str) -> str:
    """For argparse, to which a percent sign in help means more."""
    return text.replace("%", "%%")


def _add_request(made: argparse.ArgumentParser) -> None:
    """What the built-in locustfile asks for, of a server of any kind."""
    request = made.add_argument_group(
        f"the request of the built-in test (default: GET /?length=N, which {SERVER} answers)"
    )
    for option in options.REQUEST:
        option.add_to(request)


def _add_outcome(made: argparse.ArgumentParser) -> None:
    outcome = made.add_argument_group("verdict and output")
    outcome.add_argument(
        "--fail-if",
        action="append",
        default=[],
        type=_goal,
        metavar="'FIGURE > N'",
        help="fail the run if this holds for a figure of summary.json, in its unit, such as "
        "'latency_ms.p99 > 200' or 'hold_rps < 1900'; may be repeated",
    )
    outcome.add_argument(
        "--abort-on-fail",
        action="store_true",
        help="end the run as soon as it has failed, by its own rules or by a --fail-if with > (from 10 s "
        "of the hold on)",
    )
    outcome.add_argument(
        "--json", action="store_true", help="print summary.json (--plan: the plan) and nothing else"
    )
    outcome.add_argument(
        "--junit", default=None, type=Path, metavar="FILE", help="write the verdict as JUnit XML too"
    )
    outcome.add_argument("--open", action="store_true", help="open the page in a browser at the end")


def _goal(text: str) -> str:
    try:
        return Goal.checked(text).text
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def _close_to(made: argparse.ArgumentParser, words: list[str]) -> str:
    """Which of our options was meant by one that nobody knows, as far as one can tell."""
    ours = [name for action in made._actions for name in action.option_strings if name.startswith("--")]
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and (close := difflib.get_close_matches(name, ours, 1, 0.75)):
            return f"{name}: did you mean {close[0]}?"
    return ""


def _complete(made: argparse.ArgumentParser, shell: str) -> int:
    if hint := lacks("--print-completion", "shtab", "loadtest"):
        print(f"{PROGRAM}: {hint}", file=sys.stderr)
        return 5
    import shtab

    hand_over(shtab.complete(made, shell=shell))
    return 0


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1-65535")
    return int(text)


def _machine(text: str) -> Machine:
    try:
        return Machine.described(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def _plan(settings: Settings, as_json: bool) -> int:
    said = planning.report(settings.machine, settings.plan(local=settings.is_local, start=settings.is_local))
    if as_json:
        hand_over(planning.as_json(said))
    for line in () if as_json else planning.lines(said):
        say(line)
    return said.exit_code


def _master(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.netloc != text or text.endswith(":"):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST[:PORT]")
    return host, port or 5557


def _settle(made: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Refuse what does not go together, and fill in what depends on other options."""
    if chosen.join:
        given = (action for action in made._actions if hasattr(chosen, action.dest))
        for action in given:
            if action.dest not in OF_WHO_JOINS and getattr(chosen, action.dest) != action.default:
                name = max(action.option_strings, key=len)
                made.error(f"{name} is for the master to say, not for a host that joins")
    if chosen.master and chosen.connections == "auto":
        made.error("--master needs a number of connections, -c N")
    if chosen.master and chosen.processes:
        made.error("--processes is for the hosts that join: --join MASTER --processes N")
    if chosen.expect_hosts != 1 and not chosen.master:
        made.error("--expect-hosts goes with --master")
    if chosen.web_port != made.get_default("web_port") and not chosen.web:
        made.error("--web-port goes with --web")
    waits = chosen.workload != "keepalive"
    if waits and chosen.locustfile is not None:
        made.error("--workload is of the built-in tests, not of -f")
    if waits and (
        wrong := [o.flag for o in options.REQUEST if o not in options.WAITING and getattr(chosen, o.name)]
    ):
        made.error(f"{wrong[0]} is for --workload keepalive")
    if chosen.quick:
        chosen.connections = QUICK[0] if chosen.connections == "auto" else chosen.connections
        chosen.hold = QUICK[1] if chosen.hold == made.get_default("hold") else chosen.hold
    if any(getattr(chosen, option.name) for option in options.REQUEST):
        if chosen.locustfile is not None:
            made.error(
                "--path, --method, --header, --body and --expect-status are of the built-in test, not of -f"
            )
        chosen.path = chosen.path or ("/" if not waits else None)
    if chosen.locustfile is not None and (missing := locustfile.missing(chosen.locustfile)):
        made.error(f"argument -f/--locustfile: {missing}")
    chosen.did_you_mean = _close_to(made, chosen.of_locust)
    if chosen.host is None:
        chosen.host = [_host_of_locustfile(made, chosen) or DEFAULT_HOST]
        chosen.start_server = chosen.start_server or chosen.host == [DEFAULT_HOST]
    chosen.host = ",".join(chosen.host)
    try:
        values.hosts(chosen.host)
    except argparse.ArgumentTypeError as error:
        made.error(f"argument --host: {error}")
    for word in chosen.of_locust:
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        if name in OURS:
            made.error(f"{name} is Locust's; here it is {OURS[name]}")
    if chosen.of_locust and (chosen.plan or chosen.join):
        made.error(f"unrecognized arguments: {' '.join(chosen.of_locust)}")
    if chosen.source_addresses:
        os.environ[variables.SOURCE] = chosen.source_addresses
    elif named := os.environ.get(variables.SOURCE):
        try:
            values.source_addresses(named)
        except argparse.ArgumentTypeError as error:
            made.error(f"{variables.SOURCE}: {error}")


def _host_of_locustfile(made: argparse.ArgumentParser, chosen: argparse.Namespace) -> str:
    """As Locust would have it without --host; empty for the built-in tests, and if the file names none."""
    if chosen.locustfile is None or chosen.join:
        return ""
    try:
        found = locustfile.hosts(chosen.locustfile)
    except ValueError as error:
        made.error(str(error))
    if len(found) > 1:
        made.error(f"{chosen.locustfile.name} names several hosts ({', '.join(found)}): --host says which")
    return "".join(found)


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    # For Locust and the server: read when gevent is imported, see scripts/run, which sets it in a checkout.
    os.environ.setdefault("GEVENT_TRACK_GREENLET_TREE", "0")
    for hint in old_names.hints(os.environ):
        print(f"{PROGRAM}: {hint}", file=sys.stderr)
    options_of_ours = parser()
    chosen, of_locust = options_of_ours.parse_known_args(words)
    chosen.of_locust = of_locust
    if chosen.version:
        say(f"{PROGRAM} {__version__}")
        return 0
    if chosen.print_completion:
        return _complete(options_of_ours, chosen.print_completion)
    if chosen.machine and not chosen.plan:
        options_of_ours.error("--machine is for --plan")
    _settle(options_of_ours, chosen)
    if chosen.join:
        from parked.loadtest.command import join

        master, port = chosen.join
        joining = join.Joining(
            master=master,
            port=port,
            patience_s=values.duration(chosen.join_timeout),
            workers=chosen.processes,
            locustfile=chosen.locustfile,
            insecure=chosen.insecure,
            force=chosen.force,
            machine=Machine.read(),
        )
        return join.join(joining)
    command = shlex.join(["./run_test" if PROGRAM == "run_test" else PROGRAM, *map(masked, words)])
    settings = Settings.of(chosen, chosen.machine or Machine.read(), command, time.time())
    for text in (str(settings.results), str(settings.locustfile), settings.host, *settings.of_locust):
        try:
            text.encode()
        except UnicodeEncodeError:  # Locust's master could not send it to its workers
            options_of_ours.error(f"{for_line(text)} is no text in UTF-8")
    if chosen.plan:
        return _plan(settings, chosen.json)
    from parked.loadtest.command import run

    return run.run(settings)
