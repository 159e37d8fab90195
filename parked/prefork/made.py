"""Files that the server makes (process id, unix sockets): gone at its end when, and only when, they are ours.

A file is known by its inode, so one that somebody else has put in its place stays. Where `--user` gives up
root for somebody who may not change the folder any more, a small process remains root and removes the files
when the supervisor has ended, however that happened.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from os import WNOHANG, _exit, close, fork, waitpid  # as they are before gevent patches them
from time import sleep
from typing import Final

from parked.prefork.identity import IdentityError

#: Seconds that the remover may take at the end.
_REMOVER_S: Final = 2.0
#: Longer than any process id.
_PID_BYTES: Final = 32
#: The highest descriptor that the remover closes; it is forked early, when there are few.
_FDS: Final = 1 << 16


class MadeFiles:
    """The files of this server, by path, device and inode.

    :param known: those that an image before this one has made.
    :param remover: its process that removes them, as (process id, writing end of its pipe); (0, -1) for none.
    :param pid_fd: the file with the process id, open and locked; -1 for none.
    """

    def __init__(
        self, known: list[tuple[str, int, int]], remover: tuple[int, int] = (0, -1), pid_fd: int = -1
    ) -> None:
        self.known = [(name, device, inode) for name, device, inode in known]
        self.remover = remover
        self.pid_fd = pid_fd

    def add(self, name: str) -> None:
        """A file that was just made."""
        path = os.path.abspath(name)  # noqa: PTH100 - and not resolved: a link is its owner's to change
        found = os.lstat(path)
        self.known.append((path, found.st_dev, found.st_ino))

    def write_pid(self, name: str) -> None:
        """Write our process id into a new file, which takes the place of what is there, be it a link.

        A file that has our id already is left alone, whoever may write it. Whether another's server runs is
        told by the lock that it keeps on its file, not by the id, which may be anyone's by now. The lock is
        of fcntl(2): only who may write the file can have it, no forked child shares it, and it outlives exec.

        :raises IdentityError: another server is running, or it cannot be written.
        """
        if is_device(name):
            raise IdentityError(f"cannot write {name}: it would take the place of a device")
        try:
            other = _running(name)
            if other == os.getpid():
                return
            if other:
                raise IdentityError(f"process {other} of {name} is running")
            unfinished = f"{name}.{os.getpid()}"
            fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            try:
                os.write(fd, b"%d\n" % os.getpid())
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(unfinished, name)  # noqa: PTH104
            except OSError:
                close(fd)
                os.unlink(unfinished)  # noqa: PTH108
                raise
            self.pid_fd = fd
            self.add(name)
        except OSError as error:
            raise IdentityError(f"cannot write {name}: {error.strerror}") from error

    def give(self, user: int, group: int, since: int = 0) -> None:
        """Make them another user's, from number *since* on; -1 leaves an owner or a group as it is.

        :raises IdentityError: this user may not, or it is another file by now.
        """
        for name, *inode in self.known[since:] if (user, group) != (-1, -1) else []:
            try:
                _give(name, inode, user, group)
            except OSError as error:
                raise IdentityError(f"cannot give {name} to user {user}: {error.strerror}") from error

    def keep_removable(self) -> None:
        """Before root is given up: leave a process that can remove the files when this one can't."""
        if not self.known or os.geteuid() != 0:
            return
        reader, writer = os.pipe()
        pid = fork()
        if not pid:
            _remove_behind(reader, self.known)
        close(reader)
        self.remover = pid, writer

    def let_go(self) -> None:
        """In a forked child: they are the parent's."""
        if self.remover[0]:
            close(self.remover[1])
        if self.pid_fd >= 0:
            close(self.pid_fd)
        self.known, self.remover, self.pid_fd = [], (0, -1), -1

    def remove(self) -> None:
        """At the end of the supervisor."""
        _remove(self.known)
        pid, writer = self.remover
        if pid:
            close(writer)
            deadline = time.monotonic() + _REMOVER_S
            try:
                while not waitpid(pid, WNOHANG)[0] and time.monotonic() < deadline:
                    sleep(0.002)
            except ChildProcessError:
                pass  # it was killed, and reaped with the others
        self.known = []


def is_device(name: str) -> bool:
    """Whether *name* is one, or a link in their folder such as /dev/stdout: the machine needs them."""
    if os.path.dirname(os.path.abspath(name)) == "/dev":  # noqa: PTH100, PTH120 - a link is not followed
        return True
    try:
        mode = os.lstat(name).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _running(name: str) -> int:
    """The process of the pid file *name*: ours, or one whose server holds the lock; 0 if there is none.

    :raises OSError: nobody can tell.
    """
    try:
        # A link or a pipe is no file of a server's; opening one must neither follow nor wait.
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return 0
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return 0
        text = os.read(fd, _PID_BYTES)
        pid = int(text) if text.strip().isdigit() else 0
        if pid == os.getpid():
            return pid
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return pid or -1
            raise
        return 0
    finally:
        close(fd)


def _give(name: str, inode: list[int], user: int, group: int) -> None:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        if [found.st_dev, found.st_ino] != inode:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        os.chown(f"/proc/self/fd/{fd}", user, group)
    finally:
        close(fd)


def _remove(known: list[tuple[str, int, int]]) -> None:
    for name, device, inode in known:
        try:
            found = os.lstat(name)
            if (found.st_dev, found.st_ino) == (device, inode):
                os.unlink(name)  # noqa: PTH108
        except OSError:
            pass  # gone, or in a folder that we may no longer change: its remover does it


def _remove_behind(reader: int, known: list[tuple[str, int, int]]) -> None:
    """In the remover: wait for the end of the supervisor, and of those that have its pipe. Never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.pthread_sigmask(signal.SIG_BLOCK, (number,))  # ^C and `kill -- -GROUP` are not for it
        os.closerange(3, reader)
        os.closerange(reader + 1, _FDS)
        os.chdir("/")
        while os.read(reader, 1):
            pass
        _remove(known)
    finally:
        _exit(0)
