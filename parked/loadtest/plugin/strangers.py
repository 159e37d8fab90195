"""Who may talk to a run's master, and what becomes of bytes that are no message.

Whoever reaches the port of Locust's master can tell it anything, and on one host that is every local user. A
run of one host therefore has a key of its own, made by run_test and handed on in the environment, which only
this user's processes and root can read (proc(5), environ): without it ZeroMQ's handshake fails (CURVE,
zmq_curve(7)) and nothing reaches Locust. In a run of several hosts a worker says before all else of which
host it is, and one that does not is not heard. Either way it is named once: it is a worker of another test
beside this one, whose own master could not have the port.

Nor can a stranger take the master's memory by the length that a message says to have, its time by their
number, or fill its log with them.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any

import gevent
import zmq
from locust.exception import RPCError, RPCReceiveError
from locust.rpc import zmqrpc
from locust.rpc.protocol import Message
from locust.runners import MasterRunner
from zmq.utils.monitor import parse_monitor_message

from parked.loadtest.master.hosts import REPORT
from parked.loadtest.terms import variables
from parked.loadtest.terms.console import say
from parked.loadtest.terms.harmless import for_line

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Characters of a sender or of a kind of message.
LONGEST_NAME = 300
#: Bytes of a message: a worker's statistics have some hundred for each name of a request.
LARGEST = 16 << 20
#: Strangers that are named, and messages without sense that are logged; there may be any number of them.
MOST_NAMED = 10

#: Name of the message by which a worker of a joined host says of which.
OF_HOST = "parked_of_host"
#: What is heard of who is no worker: an agent's report, and Locust's question for its locustfile.
_OF_ANYBODY = (REPORT, "locustfile")
#: Events of a master's socket (zmq_socket_monitor(3)): which one a worker without the key makes depends on
#: which end notices first.
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


@functools.cache
def keep_out() -> None:
    """Ask for the run's key, if it has one, and let no message end the greenlet that hears them.

    Upstream: `BaseSocket.recv_from_client` names two of the errors that bytes may raise in msgpack, and
    `MasterRunner.client_listener` ends with any other.
    """
    zmqrpc.BaseSocket.__init__ = _with_key(zmqrpc.BaseSocket.__init__)  # type: ignore[method-assign]
    zmqrpc.BaseSocket.recv_from_client = _of_this_run(  # type: ignore[method-assign]
        _careful(zmqrpc.BaseSocket.recv_from_client)
    )
    zmqrpc.BaseSocket.send = _introduced(zmqrpc.BaseSocket.send)  # type: ignore[method-assign]
    if hasattr(MasterRunner, "handle_message"):  # since Locust 2.46; before, it is a part of the listener
        MasterRunner.handle_message = _surviving(MasterRunner.handle_message)  # type: ignore[method-assign]


def _with_key(upstream: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, sock_type: int, ipv4_only: bool) -> None:
        upstream(self, sock_type, ipv4_only)
        if sock_type == zmq.ROUTER:
            self.socket.maxmsgsize = LARGEST
        if not (keys := os.environ.get(variables.KEYS)):
            return
        public, _, secret = keys.encode().partition(b" ")
        if sock_type == zmq.ROUTER:
            self.socket.curve_server = True
            self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
            gevent.spawn(
                _name_who_has_no_key, self.socket.get_monitor_socket(_REFUSED | zmq.EVENT_MONITOR_STOPPED)
            )
        else:
            self.socket.curve_serverkey = public
            self.socket.curve_publickey, self.socket.curve_secretkey = zmq.curve_keypair()

    return init


def _name_who_has_no_key(events: Any) -> None:
    with events:
        while True:
            event = parse_monitor_message(events.recv_multipart())
            if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                return
            _name_a_stranger(event["endpoint"].decode().removeprefix("tcp://"))


_named: set[str] = set()


def _name_a_stranger(where: str) -> None:
    """Once for each, to who sees the output and to who sees the live screen."""
    if where in _named or len(_named) >= MOST_NAMED:
        return
    _named.add(where)
    text = (
        f"a stranger came to {where} and is refused, most likely a Locust worker of another test: this port "
        "is this run's, so give that test another one (--master-bind-port, --master-port)"
    )
    say(text)
    logger.warning(text)


def _introduced(upstream: Callable[..., None]) -> Callable[..., None]:
    def send(self: Any, message: Message) -> None:
        if message.type == "client_ready" and (host := os.environ.get(variables.HOST)):
            upstream(self, Message(OF_HOST, host, message.node_id))
        upstream(self, message)

    return send


#: Senders that have said of which host they are: also to the socket before, if Locust has made a new one.
_known: set[str] = set()


def _of_this_run(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """Of a master of several hosts: pass over who is of none."""

    def recv_from_client(self: Any) -> Any:
        while True:
            sender, message = upstream(self)
            if variables.EXPECT_HOSTS not in os.environ:
                return sender, message
            if sender in _known or message.type in _OF_ANYBODY:
                return sender, message
            if message.type == OF_HOST:
                _known.add(sender)
            else:
                _name_a_stranger(f"this master as {for_line(sender)[:100]}")
                gevent.sleep(0)  # however many more there are

    return recv_from_client


def _careful(upstream: Callable[..., Any]) -> Callable[..., Any]:
    def recv_from_client(self: Any) -> Any:
        while True:
            try:
                sender, message = upstream(self)
                if _is_name(message.type) and _is_name(message.node_id):
                    return sender, message
                fault = RPCReceiveError("a message that is none")
            except RPCReceiveError as error:
                fault = error
            except RPCError:
                raise
            except Exception as error:
                fault = RPCReceiveError(f"a message that is none: {type(error).__name__}")
            self.parked_senseless = getattr(self, "parked_senseless", 0) + 1
            if self.parked_senseless <= MOST_NAMED:
                raise fault
            gevent.sleep(0)

    return recv_from_client


def _is_name(value: Any) -> bool:
    """Whether it may stand in a log, as upstream writes it there."""
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


def _surviving(upstream: Callable[..., None]) -> Callable[..., None]:
    def handle_message(runner: Any, sender: str, message: Any) -> None:
        try:
            upstream(runner, sender, message)
        except Exception as error:  # whatever it was about: the next message is another one
            kind = for_line(repr(message.type))[:100]
            logger.warning("message %s of %s makes no sense: %s", kind, for_line(sender)[:100], error)

    return handle_message
