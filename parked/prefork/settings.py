"""The settings of `python -m app`, as one table: what --help prints and docs/server.md lists comes from here.

Each field of `Settings` is a flag (`idle_timeout` is --idle-timeout) and an environment variable
(PARKED_IDLE_TIMEOUT), and may be in a file; a flag comes before a variable, that before the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from parked import __version__
from parked.prefork import binding, configuration
from parked.prefork.binding import Binding
from parked.server import server
from parked.server.access_format import line_format
from parked.server.certificates import MINIMUM, VERIFY
from parked.server.limits import Limits
from parked.server.proxy_protocol import DEFAULT_PEERS, ProxyProtocol
from parked.server.trust import TrustedPeers
from parked.shared import addresses
from parked.shared.addresses import Address

#: What --help and messages call the program: the checkout's script, unless the installed command was called.
PROGRAM: Final = "parked-server" if Path(sys.argv[0]).name == "parked-server" else "run_server"

#: Exit codes; 0 is a stop in order.
EXIT_USAGE: Final = 2
EXIT_LISTEN: Final = 3
EXIT_APP: Final = 4
EXIT_WORKERS: Final = 5
EXIT_KILLED: Final = 6

_EXIT_CODES: Final = f"""exit codes:
  0  stopped in order (TERM or INT), every request in flight was answered
  {EXIT_USAGE}  a flag, a variable or a combination of them makes no sense, or exceeds a limit
  {EXIT_LISTEN}  the address cannot be listened on
  {EXIT_APP}  the application cannot be imported
  {EXIT_WORKERS}  the workers cannot start
  {EXIT_KILLED}  stopped, but requests were cut off: the graceful timeout ran out, QUIT or a second signal
  came
"""


def seconds(text: str) -> float:
    """Seconds, bare or with a unit: 30, 30s, 250ms, 5m, 1h."""
    matched = re.fullmatch(r"(.*?)(ms|s|m|h)?", text.strip())
    assert matched is not None
    try:
        value = float(matched[1]) * {"ms": 0.001, "m": 60.0, "h": 3600.0}.get(matched[2], 1.0)
    except ValueError:
        value = -1.0
    if not (0 <= value < 1e9 and math.isfinite(value)):
        raise ValueError("needs a time, 0 or more, such as 30, 30s or 5m")
    return value


def count(text: str) -> int:
    """A whole number; 400k and 1M are understood."""
    matched = re.fullmatch(r"([0-9][0-9_,]{0,40})([kKmM]?)", text.strip())
    if matched is None:
        raise ValueError("needs a whole number such as 20000, 400k or 1M")
    digits = matched[1].replace(",", "").replace("_", "")
    value = int(digits) * {"": 1, "k": 1_000, "m": 1_000_000}[matched[2].lower()]
    if not 0 <= value < 1 << 40:
        raise ValueError("needs a whole number, 0 or more")
    return value


def c_count(text: str) -> int:
    """A whole number for somebody who has it in an int of C: listen(2), gevent's semaphores."""
    value = count(text)
    if value >= 1 << 31:
        raise ValueError("needs a whole number below 2,147,483,648")
    return value


def size(text: str) -> int:
    """Bytes, with k, M or G for 1,024 of them and so on."""
    matched = re.fullmatch(r"([0-9]{1,15})([kKmMgG]?)(?:i?[bB])?", text.strip(), re.ASCII)
    if matched is None:
        raise ValueError("needs a number of bytes such as 500M or 2G")
    return int(matched[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[matched[2].lower()]


def positive(text: str) -> int:
    value = count(text)
    if not value:
        raise ValueError("needs a whole number, 1 or more")
    return value


def auto_or_positive(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def application_name(text: str) -> str:
    if not text:
        return ""
    module, colon, name = text.removesuffix("()").partition(":")
    if not (module and colon and name) or not all(
        part.isidentifier() for part in f"{module}.{name}".split(".")
    ):
        raise ValueError("needs MODULE:CALLABLE or MODULE:FACTORY()")
    return text


def file_name(text: str) -> str:
    return text


def switch(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("needs yes or no")
    return text == "yes"


def socket_mode(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch("[0-7]{1,4}", text, re.ASCII) or int(text, 8) > 0o777:
        raise ValueError("needs permissions in octal, such as 660")
    return int(text, 8)


def verification(text: str) -> str:
    if text not in VERIFY:
        raise ValueError("needs none, optional or required")
    return text


def tls_version(text: str) -> str:
    if text not in MINIMUM:
        raise ValueError("needs 1.2 or 1.3")
    return text


def peers(text: str) -> str:
    TrustedPeers(text)
    return text


def proxy_protocol(text: str) -> str:
    if text:
        ProxyProtocol(text)
    return text


def log_format(text: str) -> str:
    line_format(text)
    return text


def optional_address(text: str) -> Address | None:
    return addresses.parse(text) if text else None


def _setting(
    default: str, metavar: str, convert: Callable[[str], Any], sentence: str, *variables: str
) -> Any:
    """One row. *variables* are read besides our own."""
    return dataclasses.field(
        default_factory=lambda: convert(default),
        metadata={
            "default": default,
            "metavar": metavar,
            "convert": convert,
            "sentence": sentence,
            "variables": variables,
        },
    )


_LIMITS: Final = Limits()


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings, converted and checked."""

    bind: tuple[Binding, ...] = _setting(
        "127.0.0.1:8000",
        "ADDRESS,...",
        binding.parse,
        "Listen on HOST:PORT, [IPV6]:PORT, :PORT or unix:PATH, one or several; port 0 picks one. http:// or"
        " https:// in front says whether in clear or over TLS.",
    )
    app: str = _setting(
        "",
        "MODULE:CALLABLE",
        application_name,
        "The WSGI application, or MODULE:FACTORY() that makes one; empty: a demonstration.",
    )
    workers: int | None = _setting(
        "auto",
        "N",
        auto_or_positive,
        "Worker processes; auto: one per CPU, or as many as --connections needs.",
        "WEB_CONCURRENCY",
    )
    connections: int | None = _setting(
        "auto",
        "N",
        auto_or_positive,
        "Connections to have room for; auto: what the workers' open files allow.",
    )
    backlog: int = _setting(
        "0",
        "N",
        c_count,
        "Connections that may wait to be accepted, per worker; 0: the kernel's net.core.somaxconn.",
    )
    idle_timeout: float = _setting(
        f"{server.IDLE_TIMEOUT_S:g}", "SECONDS", seconds, "Close a connection idle for this long; 0: never."
    )
    header_timeout: float = _setting(
        f"{server.HEADER_TIMEOUT_S:g}",
        "SECONDS",
        seconds,
        "Time for a request head from its first byte; 0: for ever.",
    )
    body_timeout: float = _setting(
        f"{server.BODY_TIMEOUT_S:g}",
        "SECONDS",
        seconds,
        "Wait this long for more of a request body; 0: for ever.",
    )
    write_timeout: float = _setting(
        f"{server.WRITE_TIMEOUT_S:g}",
        "SECONDS",
        seconds,
        "Wait this long for a client that does not read; 0: for ever.",
    )
    graceful_timeout: float = _setting(
        "10", "SECONDS", seconds, "Time for requests in flight to finish after TERM or INT."
    )
    timeout: float = _setting(
        "30",
        "SECONDS",
        seconds,
        "Replace a worker whose event loop has not turned for this long; 0: never.",
    )
    max_requests: int = _setting("0", "N", count, "Replace a worker after this many requests; 0: never.")
    max_requests_jitter: int = _setting(
        "0", "N", count, "Up to this many requests more, so that workers are not replaced together."
    )
    max_worker_memory: int = _setting(
        "0", "BYTES", size, "Replace a worker that takes this much memory (RSS), such as 500M; 0: never."
    )
    max_worker_age: float = _setting(
        "0", "SECONDS", seconds, "Replace a worker after this time, up to a tenth earlier; 0: never."
    )
    limit_request_line: int = _setting(
        str(_LIMITS.request_line_bytes), "BYTES", positive, "Longest request line; longer ones get 414."
    )
    limit_header_bytes: int = _setting(
        str(_LIMITS.header_bytes), "BYTES", positive, "Longest header of a request; longer ones get 431."
    )
    limit_header_count: int = _setting(
        str(_LIMITS.header_count), "N", positive, "Header fields of a request; more get 431."
    )
    limit_body: int = _setting(
        str(_LIMITS.body_bytes), "BYTES", count, "Longest request body; longer ones get 413; 0: any."
    )
    limit_connections: int = _setting(
        "0", "N", count, "Connections per worker; more get 503; 0: what its open files allow."
    )
    limit_requests: int = _setting(
        "0", "N", c_count, "Requests in flight per worker; more wait their turn; 0: any number."
    )
    limit_pending: int = _setting(
        "0", "N", count, "Pending responses per worker; more get 503; 0: any number."
    )
    reload_timeout: float = _setting(
        "120",
        "SECONDS",
        seconds,
        "After HUP or TTOU, time for old workers to answer each connection once more.",
    )
    trial_timeout: float = _setting(
        "300",
        "SECONDS",
        seconds,
        "After HUP, time for the new code to be ready on trial; 0: for ever.",
    )
    certfile: str = _setting(
        "", "FILE", file_name, "Speak TLS, with this certificate and its chain (PEM); off if empty."
    )
    keyfile: str = _setting("", "FILE", file_name, "Its key (PEM); empty: it is in the same file.")
    keyfile_password: str = _setting(
        "", "FILE", file_name, "A file whose first line decrypts the key; empty: it is not encrypted."
    )
    ca_certs: str = _setting("", "FILE", file_name, "Authorities that sign clients' certificates (PEM).")
    cert_reqs: str = _setting(
        "none", "none|optional|required", verification, "Whether clients have to show certificates."
    )
    tls_minimum: str = _setting("1.2", "1.2|1.3", tls_version, "The oldest TLS version that is spoken.")
    ciphers: str = _setting(
        "", "NAMES", file_name, "Ciphers of TLS 1.2, in OpenSSL's words; empty: OpenSSL's choice."
    )
    forwarded_allow_ips: str = _setting(
        "",
        "PEERS",
        peers,
        "Believe X-Forwarded-* and Forwarded from these peers (addresses, networks, unix:, *); empty: none.",
        "FORWARDED_ALLOW_IPS",
    )
    proxy_protocol: str = _setting(
        "", "v1|v2|auto", proxy_protocol, "Connections of balancers begin with a PROXY header; off if empty."
    )
    proxy_allow_from: str = _setting(
        DEFAULT_PEERS,
        "PEERS",
        peers,
        "Peers that must send PROXY headers; no others may.",
    )
    access_log: str = _setting(
        "", "FILE", file_name, "Append a line per request to FILE, - for standard output; off if empty."
    )
    access_log_format: str = _setting(
        "common",
        "common|json|FORM",
        log_format,
        "Form of the access log: pywsgi's, JSON (json:FIELD,... chooses), or your own with gunicorn's atoms.",
    )
    request_id: bool = _setting(
        "no",
        "yes|no",
        switch,
        "Give each request an id for application and log: a trusted peer's X-Request-ID, or a new one.",
    )
    metrics: Address | None = _setting(  # noqa: RUF009 - as bind
        "", "ADDRESS", optional_address, "Serve /metrics for Prometheus at this address; off if empty."
    )
    pid: str = _setting("", "FILE", file_name, "Keep the supervisor's process id in FILE; off if empty.")
    user: str = _setting(
        "", "NAME", file_name, "Become this user once the sockets are open; a name or any number."
    )
    group: str = _setting("", "NAME", file_name, "Become this group instead of the user's own.")
    umask: int | None = _setting(
        "",
        "MODE",
        socket_mode,
        "Permissions that no file made here gets, such as 027; empty: as inherited.",
    )
    socket_mode: int | None = _setting(
        "",
        "MODE",
        socket_mode,
        "Permissions of unix sockets, such as 660; empty: as the umask has them.",
    )
    socket_owner: str = _setting(
        "",
        "USER:GROUP",
        file_name,
        "Owner of unix sockets; for an empty part --user or --group.",
    )
    chdir: str = _setting(
        "", "DIR", file_name, "Work in this folder; a reload follows links in its path anew."
    )
    reload: bool = _setting(
        "no", "yes|no", switch, "For development: reload when a file of the application has changed."
    )
    config: str = _setting(
        "",
        "FILE",
        file_name,
        "Settings in TOML, named as the flags; flags and variables win over it.",
    )
    print_config: bool = _setting(
        "no", "yes|no", switch, "Print all settings and where each comes from, and end."
    )
    check_config: bool = _setting(
        "no", "yes|no", switch, "Read settings and certificates, import the application, and end."
    )


def flag(field: dataclasses.Field[Any]) -> str:
    return "--" + field.name.replace("_", "-")


def variables(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Environment variables that are read, the first one that is set wins."""
    return ("PARKED_" + field.name.upper(), *field.metadata["variables"])


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s [OPTION]...",
        description="Serve a WSGI application to very many keep-alive connections.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    for field in dataclasses.fields(Settings):
        sentence, default = field.metadata["sentence"], field.metadata["default"]
        is_switch = field.metadata["convert"] is switch
        result.add_argument(
            flag(field),
            action="append" if field.name == "bind" else "store",
            metavar=field.metadata["metavar"],
            nargs="?" if is_switch else None,
            const="yes" if is_switch else None,
            default=None,
            help=f"{sentence} [{default or 'empty'}; {', '.join(variables(field))}]".replace("%", "%%"),
        )
    return result


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read the settings; what is wrong ends the program with one line and `EXIT_USAGE`."""
    command = parser()
    chosen, unknown = command.parse_known_args(arguments)
    if unknown:
        command.error(_unknown(unknown))
    given = vars(chosen)
    defaults = {field.name: field.metadata["default"] for field in dataclasses.fields(Settings)}
    texts = {
        name: ",".join(text) if isinstance(text, list) else text
        for name, text in given.items()
        if text or (text == "" and not defaults[name])  # what is off if empty can be turned off
    }
    sources = {name: "--" + name.replace("_", "-") for name in texts}
    for field in dataclasses.fields(Settings):
        for variable in variables(field):
            if field.name not in texts and environment.get(variable):
                texts[field.name], sources[field.name] = environment[variable], variable
    try:
        in_file = configuration.read(texts["config"], _names()) if texts.get("config") else {}
    except ValueError as error:
        command.exit(EXIT_USAGE, f"{command.prog}: {error}\n")
    for name, text in in_file.items():
        if name not in texts:
            texts[name], sources[name] = text, f"{texts['config']}: {name}"
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        if field.name not in texts:
            continue
        try:
            values[field.name] = field.metadata["convert"](texts[field.name])
        except ValueError as error:
            command.exit(
                EXIT_USAGE, f"{command.prog}: {sources[field.name]} {texts[field.name]!r}: {error}\n"
            )
    settings = Settings(**values)
    if settings.chdir and not Path(settings.config or "/").is_absolute():  # read again by each reload
        command.exit(EXIT_USAGE, f"{command.prog}: with --chdir, --config needs a whole path\n")
    if settings.print_config:
        print(_as_toml(texts, sources), end="")
        command.exit()
    return settings


def _unknown(words: Sequence[str]) -> str:
    """What to say of words that are no options, with the option that was meant, as far as one can tell."""
    from difflib import get_close_matches

    flags = [flag(field) for field in dataclasses.fields(Settings)]
    for word in words:
        name = word.partition("=")[0]
        if close := get_close_matches(name, flags, 1, 0.75):
            return f"{name}: did you mean {close[0]}?"
    return f"unrecognized arguments: {' '.join(words)}"


def _names() -> list[str]:
    """Of settings that a file may have."""
    return [field.name for field in dataclasses.fields(Settings) if field.name != "config"]


def _as_toml(texts: Mapping[str, str], sources: Mapping[str, str]) -> str:
    """A file that `configuration` reads, with where each setting comes from."""
    lines = []
    for field in dataclasses.fields(Settings):
        if field.name in ("config", "print_config"):
            continue
        text = texts.get(field.name, field.metadata["default"])
        name = field.name.replace("_", "-")
        lines.append(f"{name} = {json.dumps(text)}  # {sources.get(field.name, 'default')}\n")
    return "".join(lines)


def markdown_table() -> str:
    """The settings as docs/server.md lists them."""
    rows = ["| flag | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(Settings):
        unit = field.metadata["metavar"].replace("|", "\\|")
        names = ", ".join(f"`{name}`" for name in (f"{flag(field)} {unit}", *field.metadata["variables"]))
        default = f"`{field.metadata['default']}`" if field.metadata["default"] else "empty"
        rows.append(f"| {names} | {default} | {field.metadata['sentence']} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(markdown_table(), end="")
