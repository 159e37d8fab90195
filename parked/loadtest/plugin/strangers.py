"""Who may talk to a run's master, and what becomes of bytes that are no message.

Whoever reaches the port of Locust's master can tell it anything, and on one host that is every local user. A
run of one host therefore has a key of its own, made by run_test and handed on in the environment, which only
this user's processes and root can read (proc(5), environ): without it ZeroMQ's handshake fails (CURVE,
zmq_curve(7)) and nothing reaches Locust.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any

import zmq
from locust.exception import RPCError, RPCReceiveError
from locust.rpc import zmqrpc
from locust.runners import MasterRunner

from parked.loadtest.terms import variables
from parked.loadtest.terms.harmless import for_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


@functools.cache
def keep_out() -> None:
    """Ask for the run's key, if it has one, and let no message end the greenlet that hears them.

    Upstream: `BaseSocket.recv_from_client` names two of the errors that bytes may raise in msgpack, and
    `MasterRunner.client_listener` ends with any other.
    """
    zmqrpc.BaseSocket.__init__ = _with_key(zmqrpc.BaseSocket.__init__)  # type: ignore[method-assign]
    zmqrpc.BaseSocket.recv_from_client = _careful(  # type: ignore[method-assign]
        zmqrpc.BaseSocket.recv_from_client
    )
    if hasattr(MasterRunner, "handle_message"):  # since Locust 2.46; before, it is a part of the listener
        MasterRunner.handle_message = _surviving(MasterRunner.handle_message)  # type: ignore[method-assign]


def _with_key(upstream: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, sock_type: int, ipv4_only: bool) -> None:
        upstream(self, sock_type, ipv4_only)
        if not (keys := os.environ.get(variables.KEYS)):
            return
        public, _, secret = keys.encode().partition(b" ")
        if sock_type == zmq.ROUTER:
            self.socket.curve_server = True
            self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
        else:
            self.socket.curve_serverkey = public
            self.socket.curve_publickey, self.socket.curve_secretkey = zmq.curve_keypair()

    return init


def _careful(upstream: Callable[..., Any]) -> Callable[..., Any]:
    def recv_from_client(self: Any) -> Any:
        try:
            sender, message = upstream(self)
            if isinstance(message.type, str) and isinstance(message.node_id, str):
                return sender, message
        except RPCError:
            raise
        except Exception as error:
            raise RPCReceiveError(f"a message that is none: {type(error).__name__}") from error
        raise RPCReceiveError("a message that is none")

    return recv_from_client


def _surviving(upstream: Callable[..., None]) -> Callable[..., None]:
    def handle_message(runner: Any, sender: str, message: Any) -> None:
        try:
            upstream(runner, sender, message)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            kind = for_terminal(repr(message.type))[:100]
            logger.warning("message %s of %s makes no sense: %s", kind, for_terminal(sender)[:100], error)

    return handle_message
