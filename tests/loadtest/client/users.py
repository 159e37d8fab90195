"""Users of a class in a Locust without workers, for tests."""

from __future__ import annotations

from typing import Any, ClassVar

from locust import constant, task
from locust.env import Environment

from parked.loadtest.client.process import Process
from parked.user import KeepAliveUser


class Base(KeepAliveUser):
    """Notes what happens to it; thinks for 20 ms."""

    abstract = True
    wait_time = constant(0.02)
    log: ClassVar[list[Any]]

    def on_start(self) -> None:
        self.log.append("start")

    def on_stop(self) -> None:
        self.log.append("stop")


class Run:
    """Users of one class in a Locust."""

    def __init__(
        self, environment: Environment, user_class: type[Base], host: str, **attributes: Any
    ) -> None:
        self.user_class: Any = type(
            user_class.__name__, (user_class,), {"host": host, "log": [], **attributes}
        )
        self.environment = environment
        environment.user_classes = [self.user_class]
        environment._remove_user_classes_with_weight_zero()
        self.process = Process.of(environment)
        self.runner: Any = environment.runner
        self.errors: list[Any] = []
        environment.events.user_error.add_listener(lambda exception, **_: self.errors.append(exception))

    @property
    def log(self) -> list[Any]:
        log: list[Any] = self.user_class.log
        return log

    def start(self, count: int = 1) -> Run:
        self.runner.spawn_users({self.user_class.__name__: count})
        return self

    @property
    def users(self) -> list[Any]:
        return [handle.args[0] for handle in self.runner.user_greenlets]


class Getter(Base):
    @task
    def get(self) -> None:
        self.log.append("get")
        self.client.get("/")
