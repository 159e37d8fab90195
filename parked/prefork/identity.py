"""Who the server runs as, and the file that says as which process."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path


class IdentityError(Exception):
    """A user, group or pid file that cannot be had, in words."""


def become(user: str, group: str) -> None:
    """Give up root for *user* and *group* (names or numbers; empty: leave as it is).

    :raises IdentityError: unknown, or not allowed.
    """
    try:
        account = None
        if user:
            account = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        gid = account.pw_gid if account else None
        if group:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise IdentityError(f"unknown user or group: {error.args[0]}") from error
    try:
        # Groups first: afterwards we may no longer.
        if gid is not None and (gid != os.getegid() or os.geteuid() == 0):
            if os.geteuid() == 0:
                os.setgroups(os.getgrouplist(account.pw_name, gid) if account else [gid])
            os.setgid(gid)
        if account is not None and account.pw_uid != os.geteuid():
            os.setuid(account.pw_uid)
    except OSError as error:
        raise IdentityError(f"cannot become {user or 'user'}:{group or 'group'}: {error.strerror}") from error


class PidFile:
    """A file with our process id, as long as we live.

    :raises IdentityError: another living process is in it, or it cannot be written.
    """

    def __init__(self, name: str) -> None:
        self._path = Path(name)
        try:
            other = int(self._path.read_text("ascii"))
        except (OSError, ValueError):
            other = 0
        if other > 0 and other != os.getpid() and Path(f"/proc/{other}").exists():
            raise IdentityError(f"process {other} of {name} is running")
        try:
            self._path.write_text(f"{os.getpid()}\n", "ascii")
        except OSError as error:
            raise IdentityError(f"cannot write {name}: {error.strerror}") from error

    def remove(self) -> None:
        try:
            if int(self._path.read_text("ascii")) == os.getpid():
                self._path.unlink()
        except (OSError, ValueError):
            pass  # gone, not ours any more, or in a folder that we may no longer change
