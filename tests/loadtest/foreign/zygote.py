"""Runs locust commands, each in a fork of one process that has imported everything: a second less for each.

Commands come as JSON lines: {"kind", "arguments", "folder"}; each answer is the exit code.
"""

import gc
import json
import os
import sys

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402
import locust  # noqa: E402
import locust.main  # noqa: E402

import parked.user  # noqa: E402  # it changes nothing until a class is derived

#: They mostly wait.
AT_ONCE = 8
#: Ends a run when its users have ended themselves, after which plain Locust goes on waiting, and writes down
#: what was counted: a CSV file of so short a run may lack its end.
QUIT = """
import json as _json
import gevent as _gevent
from locust import events as _events

@_events.init.add_listener
def _quit_when_all_have_ended(environment, **_):
    def look():
        begun = False
        while not begun or environment.runner.user_count or environment.runner.state == "spawning":
            begun = begun or environment.runner.user_count > 0
            _gevent.sleep(0.05)
        environment.runner.quit()
    if environment.shape_class is None:
        _gevent.spawn(look)

@_events.quitting.add_listener
def _write(environment, **_):
    stats = environment.stats
    requests = [[*key[::-1], entry.num_requests, entry.num_failures] for key, entry in stats.entries.items()]
    failures = [[error.method, error.name, error.occurrences] for error in stats.errors.values()]
    with open("counted.json", "w") as file:
        _json.dump({"requests": sorted(requests), "failures": sorted(failures)}, file)
"""


def run(command: dict) -> None:
    # The loop stands still in here, and timers would start from when it last looked at the time.
    gevent.get_hub().loop.update_now()
    os.chdir(command["folder"])
    for number, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    if command["kind"] == "ours":
        locust.FastHttpUser = parked.user.KeepAliveUser
    with open("quit_at_end.py", "w") as file:
        file.write(QUIT)
    sys.argv = ["locust", *command["arguments"]]
    locust.main.main()


def main() -> None:
    commands = [json.loads(line) for line in sys.stdin]
    running: dict[int, int] = {}
    codes: dict[int, int] = {}
    gc.freeze()
    for number, command in enumerate(commands):
        child = os.fork()
        if not child:
            try:
                run(command)
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
            except KeyboardInterrupt:  # as a shell has it
                os._exit(130)
            os._exit(0)
        running[child] = number
        while len(running) >= AT_ONCE or (running and number == len(commands) - 1):
            ended, status = os.wait()
            codes[running.pop(ended)] = os.waitstatus_to_exitcode(status)
    print(json.dumps([codes[number] for number in range(len(commands))]))


if __name__ == "__main__":
    main()
