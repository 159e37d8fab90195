"""Every command that README and docs show is run as it stands, in a fresh clone, or named with a reason.

Each scene below is what somebody types who reads along: a line is a command of a document, word for word. `&`
before it leaves it in the background; lines with `+` are ours, and make what the reader has (another server, a
module). A scene has a clone, process ids and a network of its own (unshare(1)), so that it may listen at the
ports that the documents name, and nothing of it stays.

They take minutes, and so are run by `tests/documents`; that none is forgotten is looked at in
`tests/test_documents.py`. What is large is made small before it is run, by `small` and nothing else: numbers
of connections become 100, a hold becomes two seconds, and think times are short. Only the first scene draws plots.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "results/README.md"]
DOCUMENTS += sorted((CHECKOUT / "docs").glob("*.md"))
#: Seconds that a scene may take on a machine with much else to do, and scenes at the same time: they wait as well.
SCENE_S, AT_ONCE = 500, 3

#: First words of commands, besides paths in the checkout.
PROGRAMS = (
    *(
        "locust",
        "gunicorn",
        "python3",
        "pip",
        "sudo",
        "ulimit",
        "mkdir",
        "nginx",
        "cp",
        "echo",
        "systemctl",
        "nft",
    ),
    *("podman", "prometheus", "haproxy", "ipvsadm", "ssh", "curl", "export", "."),
)
_COMMAND = re.compile(
    rf"(?:[A-Z]\w*=\S+ )*(?:(?:{'|'.join(map(re.escape, PROGRAMS))}) "
    r"|(?:\./|/opt/|sysconfig/|benchmarks/|tests/)\w)"
)

SCENES = {
    "the first look": """
        ./run_test --quick
        ./run_test --quick --fail-if 'latency_ms.p99 > 200'
        ./run_test compare previous last --fail-if 'latency_ms.p99 > 2x'
        ./run_test --quick --results results/new --fail-if 'latency_ms.p99 > 200' --junit results/new.xml
        + cp -r results/new results/base
        ./run_test compare results/base results/new --fail-if 'latency_ms.p99 > 2x'
        ./run_test report last
        ./run_test report RUN
        ./run_test verify last
        ./run_test verify RUN...
        ./run_test compare RUN RUN...
        ./run_test --help
        ./run_server --help
    """,
    "the whole job": """
        ./run_test
        ./run_test -c 100000
        ./run_test -c 100000 --hold 60s
        ./run_test report results/reference/400000
        ./run_test --plan
        ./run_test --plan -c 1M
        ./run_test --plan -c 1M --machine cores=16,memory=64G,nofile=1M
        ./run_test --plan -c 10M --machine cores=16,memory=64G,nofile=1M
        ./run_test --plan -c 1M --json
        benchmarks/sizing results/reference/*
    """,
    "another server": """
        + ./run_server --bind 127.0.0.1:8080 --workers 1 --connections 1000 & await 8080
        ./run_test --host http://127.0.0.1:8080 --path / -c 20000
    """,
    "the server alone": """
        & ./run_server --bind 127.0.0.1:8000 --workers auto --connections 400000
        + await 8000; end
        & ./run_server --app mymodule:application
        + await 8000; end
        & gunicorn -k parked.gunicorn.KeepAliveWorker module:application
        + await 8000; end
        + python drop_in.py & await 8000; end
        + python server.py & await 8000; end
        & ./run_server --bind 0.0.0.0:8000 --connections 1000000
        + await 8000; end
        & ./run_server --forwarded-allow-ips 10.0.0.0/8,unix:
        + await 8000; end
        & ./run_server --proxy-protocol v2 --proxy-allow-from 10.0.0.0/8
        + until (: </dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.1; done; end
        sysconfig/check -c 400k
        sysconfig/check -c 400000
    """,
    "Locust alone": """
        . .venv/bin/activate
        + ./run_server & await 8000
        locust -f loadtest/keepalive.py --headless
        & locust -f loadtest/keepalive.py
        + await 8089; end
        ./run_test -f FILE -c 1000
        & locust -f loadtest/keepalive.py --metrics 127.0.0.1:9102
        + await 8089; end
        & locust -f loadtest/keepalive.py --processes 4
        + await 8089; end
        + locust -f reader.py --headless -u 10 -r 10 -t 1s
    """,
    "web": """
        & ./run_test -c 20000 --web
        + await 8089; end INT
    """,
    "a test of one's own": """
        & ./run_server --app docs.examples.orders_app:application --connections 20000
        + await 8000
        locust -f docs/examples/orders.py --headless -u 20000 -r 2000 -t 60s --processes 2 --stop-timeout 10 --csv orders
    """,
    "plain Locust at scale": """
        ulimit -Hn
        & ./run_server --connections 400000 --metrics 127.0.0.1:9101
        + await 8000
        . .venv/bin/activate
        locust -f loadtest/keepalive.py --headless --processes 22 -u 400000 -r 3000 --adaptive --hold 5m --server-metrics 127.0.0.1:9101 --results results/mine
        ./run_test verify results/mine
    """,
    "clients that wait": """
        ./run_test --workload longpoll -c 20000 --think 10:90
        ./run_test --workload longpoll
        ./run_test --workload events -c 20000 --path '/events?every=30'
        ./run_test --workload events
    """,
    "metrics": """
        & ./run_server --metrics 127.0.0.1:9101 --connections 400000
        + await 8000
        ./run_test --metrics 127.0.0.1:9102 -c 400000
        + end
        ./run_test --metrics 127.0.0.1:9102 --server-metrics 127.0.0.1:9101 -c 20000 --hold 30s
    """,
    "beside nginx": """
        mkdir files
        python3 -c 'for n in range(1024, 10241): open(f"files/{n}", "wb").write(bytes(n))'
        & nginx -p "$PWD" -c nginx.conf -e error.log
        + await 8080
        ./run_test -c 5000 --hold 20s --results results/ours
        ./run_test -c 5000 --hold 20s --results results/nginx --host http://127.0.0.1:8080
        ./run_test compare results/ours results/nginx --fail-if 'hold_rps < 0.95x'
    """,
    "several hosts": """
        + ip addr add 10.0.0.1/32 dev lo; ip addr add 10.0.0.2/32 dev lo
        & ./run_server --bind 0.0.0.0:8000 --connections 1000000
        + await 8000
        & ./run_test --master --expect-hosts 2 -c 1M --host http://10.0.0.1:8000 --hold 5m
        & ./run_test --join 10.0.0.2
        & ./run_test --join 10.0.0.2
        + jobs -p | tail -n 3 | while read -r job; do tail --pid="$job" -f /dev/null; done
    """,
}

_ROOT = "changes the machine's kernel, as root: tests/sysconfig tries it on a made-up one"
_NFT = "a firewall's rules, as root"
_INSTALL = "installs at a place of the machine's: tests/deploy tries it in a folder"
_BENCHMARK = "measures the machine: tests/benchmarks tries it in small"
_DRILL = "a drill of minutes: tests/drills/test_small_forms.py tries its small form"
_BALANCER = "hosts of a network: tests/drills/several-hosts tries it, as root"
#: Commands that are not run here, and why.
UNTRIED = {
    "python3 -m venv /opt/parked": _INSTALL,
    "python3 -m venv /opt/parked && /opt/parked/bin/pip install '.[all]'": _INSTALL,
    "/opt/parked/bin/pip install '.[all]'": _INSTALL,
    "/opt/parked/bin/parked-server": _INSTALL,
    "/opt/parked/bin/parked-loadtest -c 20000 --hold 30s": _INSTALL,
    "/opt/parked/bin/parked-server --help": _INSTALL,
    "/opt/parked/bin/parked-loadtest --help": _INSTALL,
    "pip install '.[gunicorn]'": _INSTALL,
    "pip install redis django flask": "what requirements-dev.txt has: tests/examples/test_notify.py",
    "cp /opt/parked/share/parked/systemd/parked-server.service /etc/systemd/system/": "needs systemd as root",
    "echo PARKED_CONNECTIONS=400000 >/etc/default/parked-server": "needs systemd as root",
    "systemctl daemon-reload && systemctl enable --now parked-server": "needs systemd as root",
    "systemctl reload parked-server": "needs systemd as root",
    "podman build -f deploy/container/Containerfile -t parked .": "needs podman: tests/deploy/test_container.py",
    "podman run -p 8000:8000 --ulimit nofile=1048576 parked": "needs podman: tests/deploy/test_container.py",
    "prometheus --config.file=deploy/prometheus/prometheus.yml --web.listen-address=127.0.0.1:9090": (
        "needs Prometheus: tests/drills/prometheus"
    ),
    "sudo sysconfig/apply -c 1M --persist": _ROOT,
    "sudo sysconfig/apply -c 400k": _ROOT,
    "sudo sysconfig/apply -c 400k --persist": _ROOT,
    "sudo sysconfig/revert": _ROOT,
    "sysconfig/apply -c 400000 --persist": _ROOT,
    "sysconfig/apply -c 1600000": _ROOT,
    "sysconfig/addresses add eth0 10.0.0.16/28": _ROOT,
    "./run_test compare": "a name in a sentence",
    "benchmarks/client -u 10000,19800 --rounds 1 --seconds 8 --think 4:20 --write": _BENCHMARK,
    "benchmarks/server --apps falcon --rounds 4 --duration 3": _BENCHMARK,
    "benchmarks/held-up --rounds 1": _BENCHMARK,
    "benchmarks/tls --servers ours,imported,nginx": _BENCHMARK,
    "sudo sysconfig/addresses add eth0 10.0.0.32/28": _ROOT,
    "sudo sysconfig/addresses add eth0 10.0.0.16/28": _ROOT,
    "sudo sysconfig/addresses remove eth0 10.0.0.16/28": _ROOT,
    "tests/drills/all": _DRILL,
    "tests/drills/all --times 3 --at-once 6": _DRILL,
    "tests/drills/cut-off --cut 20": _DRILL,
    "tests/drills/several-hosts": _DRILL,
    "tests/drills/several-hosts --direct": _DRILL,
    "tests/drills/several-hosts --kill": _DRILL,
    "tests/run": "is what runs this test",
    "tests/run tests/app -k health": "may refresh the environment that this test runs in",
    "tests/documents": "is what runs this",
    "tests/compat": "makes environments of many versions, for minutes",
    "benchmarks/sizing RUN RUN... --fit": "tests/loadtest/plan/test_measured_run.py",
    "benchmarks/sizing RUN RUN... --fit SERVER_WORKER_CORES CLIENT_WORKER_CORES": (
        "tests/loadtest/plan/test_measured_run.py"
    ),
    "./run_test --master --expect-hosts 10 -c 10M --hold 5m --host http://10.0.0.1:8000,http://10.0.0.2:8000,...": (
        "ten hosts: the two above are tried"
    ),
    "./run_test --workload events --host https://elsewhere --path /stream": "needs another host",
    "./run_test --join MASTER": "ten hosts: the two above are tried",
    "./run_test --master --expect-hosts 3 -c 1M --hold 5m --host http://10.0.1.11:8000 --host http://10.0.1.12:8000": (
        _BALANCER
    ),
    "./run_test --join 10.0.0.5": _BALANCER,
    'ulimit -n "$(ulimit -Hn)"': _BALANCER,
    "BIND=10.0.2.2:8000 SERVER1=10.0.1.11:8000 SERVER2=10.0.1.12:8000 haproxy -D -f docs/haproxy.cfg": _BALANCER,
    "ssh -N -L 5557:127.0.0.1:5557 leader": "needs another host",
}
#: ... and programs of which none is run.
UNTRIED_PROGRAMS = {"nft": _NFT, "ipvsadm": _BALANCER}

_SHELL = """\
await() { timeout 100 sh -c 'until curl -s -o /dev/null http://127.0.0.1:$0/; do sleep 0.1; done' "$1" || exit 8; }
end() { kill -"${1:-TERM}" $last; wait $last; }
may() { case " $2 " in *" $1 "*) ;; *) echo "exit code $1, not one of $2"; exit 9 ;; esac; }
ip link set lo up
"""


def blocks(document: Path) -> list[str]:
    """What is set off by four spaces, as it is meant."""
    found = re.findall(r"(?:(?:^ {4}.*|^)\n)+", document.read_text(), re.MULTILINE)
    return [textwrap.dedent(block) for block in found if block.strip()]


def commands(document: Path) -> list[str]:
    """Those that are set off, and those in a sentence that are more than a name."""
    lines = "".join(blocks(document)).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:\./run_|locust -f |sysconfig/|benchmarks/)[^`]* [^`]*)`", document.read_text())
    bare = [re.sub(r"\s+", " ", re.sub(r"\s\s+#.*", "", line)).strip() for line in lines]
    return [line for line in bare if _COMMAND.match(line)]


def small(command: str) -> str:
    """The same command in small."""
    command = re.sub(r"\bRUN(\.\.\.)?(?= |$)", "last", command).replace("FILE", "reader.py")
    is_locust, is_run = (
        command.startswith("locust"),
        re.match(r"\./run_test(?! (--help|report|verify|compare))", command),
    )
    if "--plan" in command or not (is_locust or is_run or command.startswith("./run_server")):
        return command
    command = re.sub(r"(-c|-u|--connections) [0-9]+[kM]?\b", r"\1 100", command)
    command = re.sub(r"(--hold|-t) [0-9]+[sm]\b", r"\1 2s", command)
    command = re.sub(r"(-r) [0-9]+\b", r"\1 100", command)
    command = re.sub(r"(--processes) [0-9]+\b", r"\1 2", command)
    if is_run and "--join" not in command:
        command = re.sub(" --think [0-9:]+", "", command)
        command += "" if "-c " in command else " -c 100"
        command += "" if "--hold" in command else " --hold 2s"
        command += " --think 0.5:1"
    if is_locust and "--headless" in command and not re.search("--hold|-t ", command):
        command += " -u 100 -t 2s"
    return command


def codes(command: str) -> str:
    """Exit codes that are right: so few requests may be fewer than those offered, by chance."""
    if "--plan" in command:
        return "0 3"
    if "--help" in command:
        return "0"
    return "0 1" if re.match(r"\./run_test|locust|sysconfig/check", command) else "0"


def script(scene: str) -> str:
    lines, played = [_SHELL], set()
    for line in textwrap.dedent(SCENES[scene]).strip().splitlines():
        if line.startswith("+ "):
            lines.append(line[2:].replace(" & ", " & last=$!\n"))
        elif line.startswith("& "):
            lines.append(f"{small(line[2:])} & last=$!")
        elif (tried := small(line)) not in played:  # the same once it is small
            played.add(tried)
            lines += [f"echo {shlex.quote('$ ' + line)}", tried, f"may $? '{codes(line)}'"]
    return "\n".join([*lines, "exit 0"])


NGINX = next(block for block in blocks(CHECKOUT / "results/README.md") if "worker_rlimit_nofile" in block)


def prepare(clone: Path) -> None:
    """What the reader of the documents has: an environment, and files with what the documents show."""
    (clone / ".venv").symlink_to(sys.prefix)
    for module in ("module", "mymodule"):
        (clone / f"{module}.py").write_text("from app.wsgi import application\n")
    for name, document, word in (
        ("drop_in", "README.md", "KeepAliveWSGIServer(("),
        ("server", "docs/server.md", "serve_forever"),
        ("reader", "README.md", "class Reader"),
    ):
        (code,) = [block for block in blocks(CHECKOUT / document) if word in block and "import" in block]
        whole = code[code.index("from ") :]
        application = "from app.wsgi import application\n" if "application" in code else ""
        (clone / f"{name}.py").write_text(whole.replace("from parked", f"{application}from parked", 1))
    (clone / "nginx.conf").write_text(NGINX[NGINX.index("daemon off") : NGINX.rindex("}") + 1])


class Seen(NamedTuple):
    code: int
    output: str
    clone: Path


def play(scene: str, folder: Path) -> Seen:
    clone = folder / scene.replace(" ", "-").replace("'", "")
    subprocess.run(["git", "clone", "-q", CHECKOUT, clone], check=True, capture_output=True)
    prepare(clone)
    path = f"{sys.prefix}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = os.environ | {"PARKED_VENV": sys.prefix, "PATH": path, "GEVENT_TRACK_GREENLET_TREE": "0"}
    if scene != next(iter(SCENES)):  # as where matplotlib is not installed
        plain = clone / "without-plots"
        plain.mkdir()
        (plain / "sitecustomize.py").write_text('import sys\n\nsys.modules["matplotlib"] = None\n')
        environment["PYTHONPATH"] = str(plain)
    with (folder / f"{clone.name}.output").open("w+") as output:
        # With output to a file, nobody who was left behind can hold up who waits for its end.
        try:
            done = subprocess.run(
                [*APART, "bash", "-c", script(scene)],
                cwd=clone,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=SCENE_S,
                check=False,
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = -1
        output.seek(0)
        return Seen(code, output.read(), clone)


#: In namespaces that are the scene's own, and end with it.
APART = ("unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child")


def can_be_apart() -> bool:
    if not all(map(shutil.which, ("unshare", "ip", "curl", "git"))) or not (CHECKOUT / ".git").exists():
        return False
    stamp = Path(sys.prefix) / ".installed-requirements.txt"
    tried = subprocess.run([*APART, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return stamp.exists() and tried.returncode == 0


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Seen]]]:
    """All of them, begun before the first is asked for."""
    if not can_be_apart():
        pytest.skip("needs the environment of ./run_test, git, curl and namespaces (unshare, as root)")
    folder = tmp_path_factory.mktemp("commands")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {scene: pool.submit(play, scene, folder) for scene in SCENES}


@pytest.mark.timeout(2 * SCENE_S)
@pytest.mark.parametrize("scene", SCENES)
def test_what_the_documents_say_can_be_typed(scenes: dict[str, Future[Seen]], scene: str) -> None:
    if scene == "beside nginx" and not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("needs nginx")
    seen = scenes[scene].result()
    assert seen.code == 0, seen.output
    assert "Traceback" not in seen.output, seen.output
    for file in seen.clone.glob("results/[!r]*/summary.json"):
        summary = json.loads(file.read_text())
        assert (summary["failures"], summary["peak_connections"]) == (0, 100), (
            seen.output,
            summary["reasons"],
        )
