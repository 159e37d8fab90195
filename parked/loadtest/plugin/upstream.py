"""What of Locust is replaced or relied upon, and how each of these read in the versions that were looked at.

A function is known by its source: the first characters of its SHA-256. Known are those of Locust 2.43.0 to
2.47.0, every version in between. Another source means that nobody has looked yet whether what is built on it
still holds.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from gevent.pool import Group

from parked.loadtest.client.turns import UserHandle

if TYPE_CHECKING:
    from collections.abc import Iterable

#: module:name of each function, and the fingerprints that are known.
KNOWN: dict[str, frozenset[str]] = {
    name: frozenset(fingerprints.split())
    for name, fingerprints in {
        "locust.argument_parser:default_args_dict": "e2bb0dc3de63",
        "locust.runners:Runner.user_classes_count": "7fe2f3bab5fc",
        "locust.runners:Runner.spawn_users": "3a06b59898b6",
        "locust.runners:Runner.stop_users": "024408322abd 7c825b785ff3",
        "locust.runners:WorkerRunner.handle_message": "0bbf4baa0bf6 35cce2c6ddaa",
        "locust.runners:WorkerRunner.heartbeat": "b0aa7d8a9e63",
        "locust.runners:MasterRunner.heartbeat_worker": "8b8fb931baa8 40826c648165",
        "locust.runners:MasterRunner.start": "e376190353f5 4e8ae4842328",
        "locust.runners:MasterRunner.stop": "13390a98fc27",
        "locust.runners:MasterRunner.quit": "69367e86ece0",
        "locust.user.task:TaskSet.__init__": "aaa78fea5a86 37c14f4849c1 005f46996440",
        "locust.user.task:TaskSet.run": "4db8f38bcb19",
        "locust.user.task:TaskSet.wait": "6eb57b4538d9",
        "locust.user.task:TaskSet.execute_next_task": "6f75dc267537",
        "locust.user.users:User.__init__": "7ddb95556f46 697237a834cc 2a3353c9f24b",
        "locust.user.users:User.run": "8b52e8926781 3dab5944c568",
        "locust.user.users:User.start": "11d099324dfe",
        "locust.user.users:User.stop": "31116a433d20 96dfa1ff9c78",
        "locust.contrib.fasthttp:FastHttpUser.__init__": "1562ba7ac1ea",
        "locust.stats:StatsEntry.log": "f8a1baa3c6a9",
        "locust.stats:StatsEntry.extend": "9035b317338f 0f0d4291338e",
        "locust.stats:RequestStats.log_request": "35155cb9df85",
        "locust.stats:RequestStats.log_error": "25e6dca91226",
        "locust.stats:StatsCSV.requests_csv": "12759cd3da1e",
        "locust.stats:StatsCSV.failures_csv": "7924788b95d1",
        "locust.stats:StatsCSV.exceptions_csv": "ca3f3a964b09",
        "locust.stats:StatsCSVFileWriter.stats_writer": "e17f0d89cc49",
        "locust.stats:StatsCSVFileWriter.close_files": "852af3bd42cb",
        "locust.stats:RequestStats.serialize_stats": "10c3f866bed0",
        "locust.stats:print_stats_json": "da35bc5ed032",
        "locust.stats:save_stats_json": "4b6b8b70ab6c",
        "locust.web:WebUI.auth_required_if_enabled": "0e5be04fc797",
        "locust.web:WebUI.update_template_args": "2bf55963786e bd418fd05014",
    }.items()
}

#: Functions that are too large to stay the same, and what of them is relied upon.
MENTIONED = {
    "locust.main:main": ("gevent.fork()",),
    "locust.web:WebUI.__init__": ('Blueprint("locust"', "def index(", "def swarm("),
}

#: What the Connections tab is hung up on.
TAB = (
    "locust.web:WebUI.__init__",
    "locust.web:WebUI.auth_required_if_enabled",
    "locust.web:WebUI.update_template_args",
)
#: What a turn is cut out of: with any of these changed, users would do something else than they say.
TURNS = (
    "locust.user.task:TaskSet.__init__",
    "locust.user.task:TaskSet.run",
    "locust.user.task:TaskSet.wait",
    "locust.user.task:TaskSet.execute_next_task",
    "locust.user.users:User.__init__",
    "locust.user.users:User.run",
    "locust.user.users:User.start",
    "locust.user.users:User.stop",
    "locust.contrib.fasthttp:FastHttpUser.__init__",
)
#: Methods of gevent's Group that meet the handles which stand for users' greenlets.
GROUP = ("add", "discard", "_discard", "join", "kill", "killone")
#: What they use of modules, and of a greenlet when asked to raise its error, which Locust never does.
NOT_OF_A_GREENLET = frozenset(("sleep", "getcurrent", "spawn", "killall", "_killall", "greenlet", "joinall"))
ONLY_TO_RAISE = frozenset(("exception", "_raise_exception"))


def source(function: Any) -> str:
    """Of a function or property; "" if it is not there."""
    try:
        return inspect.getsource(inspect.unwrap(getattr(function, "fget", function)))
    except (OSError, TypeError):
        return ""


def fingerprint(function: Any) -> str:
    """Of a function or property, by its source."""
    return hashlib.sha256(source(function).encode()).hexdigest()[:12]


def find(name: str) -> Any:
    """The function of a name as :data:`KNOWN` has it; None if it is gone."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def changed(names: Iterable[str]) -> list[str]:
    """Those of the names whose source is not known, without their modules."""
    return [name.partition(":")[2] for name in names if not _is_known(name)]


def _is_known(name: str) -> bool:
    found = find(name)
    if name in KNOWN:
        return fingerprint(found) in KNOWN[name]
    text = source(found)
    return all(words in text for words in MENTIONED[name])


def asked_of_greenlets(*functions: Any) -> set[str]:
    """Names of attributes that these functions use of a greenlet, read off their sources."""
    text = "".join(map(source, functions))
    used = set(re.findall(r"\b(?:user_greenlet|greenlet|g)\.([a-z_]\w*)", text))
    return used - NOT_OF_A_GREENLET - ONLY_TO_RAISE


def unknown_to_handles() -> list[str]:
    """What gevent's Group uses of a greenlet and a handle does not have."""
    asked = asked_of_greenlets(*(getattr(Group, name) for name in GROUP))
    return [f"Group (greenlet.{name})" for name in sorted(asked) if not hasattr(UserHandle, name)]
