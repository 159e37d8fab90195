"""What the supervisor opens while it may still be root, or has open from the image before it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from os import close
from socket import socket
from typing import Any

from parked.prefork import access_log, handover, sizing
from parked.prefork.identity import Identity, IdentityError, find
from parked.prefork.listening import inherited, listen
from parked.prefork.made import MadeFiles
from parked.prefork.scoreboard import LAYOUT, Scoreboard
from parked.prefork.settings import Settings
from parked.server.certificates import VERIFY, CertificateError, server_context
from parked.shared.addresses import Address
from parked.shared.descriptors import raise_nofile


@dataclass
class Opened:
    """All of it. Sockets, except those of a service manager, were made here and belong to the server."""

    listeners: list[socket]
    metrics: socket | None
    scoreboard: Scoreboard
    files: MadeFiles
    #: Where it was started, with the links in its path as they were written: they may lead elsewhere later.
    folder: str
    #: As many as there are sockets for, at an address where each has its own.
    workers: int
    #: Workers that the settings ask for, and those of the image before; 0 if it did not say.
    planned: int
    planned_before: int
    #: Descriptors that each process may open.
    nofile: int
    #: Of TLS, if it is spoken anywhere.
    context: Any
    #: Processes of the image before, and the pipes that tell them that the supervisor lives.
    old: list[int]
    lifelines: list[int]


def open_all(settings: Settings, left: handover.Handover | None) -> Opened:
    """Listen, write the process id and give up root; or take over what was *left* by the image before.

    :raises SizingError: the limits do not allow it.
    :raises ListenError: an address cannot be listened on.
    :raises IdentityError: a user or a file cannot be had.
    :raises LogError: the access log cannot be opened.
    :raises CertificateError: there can be no TLS.
    """
    nofile = raise_nofile()
    workers, _ = sizing.plan(settings.workers, settings.connections, nofile, sizing.cpu_count())
    folder = work_in(settings.chdir) if left is None else left.folder
    context = tls_context(settings)
    if left is not None:
        return Opened(
            [handover.adopt(fd) for fd in left.listeners],
            handover.adopt(left.metrics) if left.metrics is not None else None,
            _scoreboard(left),
            MadeFiles(left.files, left.remover, left.pid_fd),
            folder,
            left.workers,
            workers,
            left.planned,
            nofile,
            context,
            left.old,
            left.lifelines,
        )
    if settings.umask is not None:
        os.umask(settings.umask)
    identity = find(settings.user, settings.group)
    owner = find(*settings.socket_owner.partition(":")[::2])
    files = MadeFiles([])
    try:
        handed = inherited(os.environ)
        listeners = handed or [
            sock
            for binding in settings.bind
            for sock in _listen(settings, binding.address, workers, settings.backlog, files)
        ]
        metrics = None
        if settings.metrics is not None:
            (metrics,) = _listen(settings, settings.metrics, 1, 0, files)
        files.give(*_owner(owner, identity))
        if settings.pid:
            sockets = len(files.known)
            files.write_pid(settings.pid)
            files.give(*_owner(identity, identity), since=sockets)
        if identity.uid not in (None, os.geteuid()):
            files.keep_removable()
        identity.become()
        # Each worker has its own; opened here as well, so that one line says what would be wrong with it.
        if settings.access_log not in ("", "-"):
            log = access_log.LogFile(settings.access_log)
            log.open()
            log.close()
    except BaseException:
        files.remove()
        raise
    return Opened(
        listeners, metrics, Scoreboard(), files, folder, workers, workers, 0, nofile, context, [], []
    )


def tls_context(settings: Settings) -> Any:
    """The TLS context that all workers share; None without a certificate.

    :raises CertificateError: files cannot be used, or settings contradict each other.
    """
    verifies = VERIFY[settings.cert_reqs] != VERIFY["none"]
    if not settings.certfile:
        for name in ("keyfile", "keyfile_password", "ca_certs", "ciphers"):
            if getattr(settings, name):
                raise CertificateError(f"--{name.replace('_', '-')} needs --certfile")
        if verifies or any(binding.secure for binding in settings.bind):
            raise CertificateError(f"{'--cert-reqs' if verifies else 'https://'} needs --certfile")
        return None
    if verifies != bool(settings.ca_certs):
        raise CertificateError("--ca-certs and --cert-reqs need each other")
    return server_context(
        settings.certfile,
        settings.keyfile,
        settings.keyfile_password,
        settings.ca_certs,
        settings.cert_reqs,
        settings.tls_minimum,
        settings.ciphers,
    )


def _listen(settings: Settings, address: Address, count: int, backlog: int, files: MadeFiles) -> list[socket]:
    sockets = listen(address, count, backlog, settings.socket_mode)
    if address.path:
        files.add(address.path)
    return sockets


def _owner(wanted: Identity, otherwise: Identity) -> tuple[int, int]:
    """A user and a group as chown(2) takes them: -1 leaves them."""
    uid = wanted.uid if wanted.uid is not None else otherwise.uid
    gid = wanted.gid if wanted.gid is not None else otherwise.gid
    return (-1 if uid is None else uid), (-1 if gid is None else gid)


def work_in(wanted: str) -> str:
    """Where this process is to work, and go there; $PWD, as shells keep it, says how the user came here.

    :raises IdentityError: it cannot be entered.
    """
    here = os.environ.get("PWD", "")
    try:
        if not (here and os.path.samefile(here, ".")):  # noqa: PTH121
            here = os.getcwd()  # noqa: PTH109
    except OSError:
        here = os.getcwd()  # noqa: PTH109
    folder = os.path.join(here, wanted)  # noqa: PTH118
    if wanted:
        try:
            os.chdir(folder)
        except OSError as error:
            raise IdentityError(f"cannot work in {folder}: {error.strerror}") from error
        os.environ["PWD"] = folder
    return folder


def _scoreboard(left: handover.Handover) -> Scoreboard:
    """That of the image before us, so that totals go on, if it is of the same form."""
    if left.scoreboard < 0:
        return Scoreboard()
    if left.layout != LAYOUT:
        close(left.scoreboard)
        return Scoreboard()
    scoreboard = Scoreboard(left.scoreboard)
    for owner in {*scoreboard.column("owner")} - {*left.old}:
        scoreboard.release(owner)  # of a process that was about to be replaced
    return scoreboard
