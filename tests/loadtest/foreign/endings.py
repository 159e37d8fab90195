"""Ways in which a script ends a user, a run or the process; one class for each, named on the command line."""

import sys

from locust import FastHttpUser, constant, task
from locust.exception import StopTest, StopUser


class End(BaseException):
    """No Exception: what Locust catches of tasks is not for it."""


class Ending(FastHttpUser):
    abstract = True
    wait_time = constant(0.05)

    def end(self):
        raise StopUser

    @task
    def once(self):
        self.client.get("/")
        self.end()


class Interrupt(Ending):
    def end(self):
        raise KeyboardInterrupt


class Exit(Ending):
    def end(self):
        sys.exit(3)


class Base(Ending):
    def end(self):
        raise End


class StopAll(Ending):
    def end(self):
        raise StopTest("enough")


class QuitWithCode(Ending):
    def end(self):
        self.environment.process_exit_code = 7
        self.environment.runner.quit()


class FailAndExit(Ending):
    """The failure is counted before the exit code is made up."""

    def end(self):
        self.client.get("/status/500")
        raise KeyboardInterrupt


class AtStart(Ending):
    abstract = True

    def on_start(self):
        self.client.get("/start")
        self.end()


class StartInterrupted(AtStart):
    end = Interrupt.end


class StartExits(AtStart):
    end = Exit.end


class StartEndsUser(AtStart):
    pass


class StartQuits(AtStart):
    end = QuitWithCode.end


class StartWaits(Ending):
    def on_start(self):
        self.wait()
        self.client.get("/start")


class StopExits(Ending):
    def on_stop(self):
        sys.exit(3)


class StopFails(Ending):
    def on_stop(self):
        self.client.get("/stop")
        raise ValueError("the script's own")


class StopWaits(Ending):
    def on_stop(self):
        self.wait()
        self.client.get("/later")


class WaitFails(Ending):
    end = Ending.context

    def wait_time(self):
        raise ValueError("the script's own")


class MadeBadly(Ending):
    def __init__(self, environment):
        raise ValueError("the script's own")
