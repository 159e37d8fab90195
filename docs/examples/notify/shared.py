"""A hub for each of many workers, with Redis between them: what one publishes, all tell.

A script in Redis numbers, keeps and publishes each message in one step. A worker subscribes first and then
reads what is kept, so that nothing is lost between the two; what comes twice is told once. When Redis was
away, it begins anew. If Redis has forgotten all meanwhile, as one that keeps nothing on disk, the numbers go
on where the workers have seen them: a lower one would be taken for a message that was told already.

Needs the package redis: `pip install redis`.
"""

from __future__ import annotations

import gevent
import redis
from gevent.event import Event

from .hub import KEPT, Hub

KEY = "notify"
#: Seconds that a client waits for Redis before it gets what this worker has.
READY_S = 5.0
#: Seconds until Redis is tried again.
RETRY_S = 1.0

_REMEMBER = """
if tonumber(redis.call('GET', KEYS[1] .. ':number') or '0') < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1] .. ':number', ARGV[1])
end
"""
_PUBLISH = f"""{_REMEMBER}
local number = redis.call('INCR', KEYS[1] .. ':number')
local message = number .. ' ' .. ARGV[2]
redis.call('RPUSH', KEYS[1] .. ':kept', message)
redis.call('LTRIM', KEYS[1] .. ':kept', -{KEPT}, -1)
redis.call('PUBLISH', KEYS[1], message)
return number
"""


class SharedHub(Hub):
    """The listeners of one worker among many."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._redis = redis.Redis.from_url(url, decode_responses=True)
        self._publish = self._redis.register_script(_PUBLISH)
        self._remember = self._redis.register_script(_REMEMBER)
        self._follower: gevent.Greenlet | None = None
        self._ready = Event()

    def stream(self, defer: object, last: str | None) -> None:
        self._follow()
        super().stream(defer, last)

    def poll(self, defer: object, last: str | None) -> None:
        self._follow()
        super().poll(defer, last)

    def publish(self, text: str) -> None:
        self._follow()  # to know the last number
        self._publish(keys=[KEY], args=[self._last, text])

    def _follow(self) -> None:
        """Begin when the first client comes: the application is imported before its workers are forked."""
        if self._follower is None:
            self._follower = gevent.spawn(self._listen)
        self._ready.wait(READY_S)

    def _listen(self) -> None:
        while True:
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(KEY)
                    self._remember(keys=[KEY], args=[self._last])
                    for message in self._redis.lrange(f"{KEY}:kept", 0, -1):
                        self._hear(message)
                    self._ready.set()
                    for event in channel.listen():
                        self._hear(event["data"])
            except redis.RedisError:
                gevent.sleep(RETRY_S)

    def _hear(self, message: str) -> None:
        number, _, text = message.partition(" ")
        if number.isdigit() and int(number) > self._last:  # others may publish there, too
            self._tell(int(number), text)
