"""Start programs with default signal dispositions and an empty signal mask.

A background process (``nohup``, cron, some CI runners) ignores SIGINT, SIGQUIT or
SIGHUP, and a program that it starts inherits that: a server that is not yet
ready then ignores the signal to stop. `subprocess` resets only SIGPIPE and
SIGXFSZ, and its ``preexec_fn`` is unsafe with threads.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

# `subprocess` resets these by itself (restore_signals): Python ignores them.
_RESET_BY_SUBPROCESS: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
# Root's privileges are dropped last: the user may not be able to reach Python's files.
_RESET: Final = """\
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
ids, *argv = sys.argv[1:]
if ids:
    uid, gid = map(int, ids.split(","))
    os.setgroups([])
    os.setregid(gid, gid)
    os.setreuid(uid, uid)
os.execv(argv[0], argv)
"""


def has_default_signals() -> bool:
    """Whether `subprocess` starts a program with default dispositions and an empty mask.

    The mask is that of the calling thread.
    """
    if signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return False
    reset = signal.valid_signals() - _RESET_BY_SUBPROCESS
    return all(signal.getsignal(number) is not signal.SIG_IGN for number in reset)


def with_default_signals(
    argv: Sequence[str | os.PathLike[str]], ids: tuple[int, int] | None = None
) -> list[str]:
    """Return a command that runs `argv` with default dispositions and an empty mask.

    The command is a short Python program that executes `argv` in the same process; it
    takes about 10 ms.

    Args:
        argv: the absolute path of a program, and its arguments.
        ids: the uid and gid to which root drops its privileges, with all groups.
    """
    python = [sys.executable, "-I", "-S", "-c", _RESET]
    return [*python, ",".join(map(str, ids or ())), *(os.fspath(each) for each in argv)]
