"""Work in a forked process, which has the model already, and is killed at some moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def killed_in_child(work: Callable[[], object], moment: Callable[[int], None] | None = None) -> bool:
    """Do `work` in a child, and say whether it was killed: by SIGKILL, when `moment(process id)` is over.

    Without a moment it is left in peace. Raises `RuntimeError` where the work failed.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if moment is not None:
        moment(child)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed; its error is above")
    return os.WIFSIGNALED(status)
