"""Ctrl-C at any moment ends a command in one line."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def leaving_while_importing(message: str, status: int) -> Iterator[None]:
    """Let an interrupt that comes while modules are imported write `message` and leave with `status` at once.

    Nothing is under way then that could be cut off, and an exception inside of an import is not sure to come out: some
    modules turn it into another one, native ones abort. At other moments an interrupt is the `KeyboardInterrupt` that
    it always is.
    """

    def interrupted(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os.write(2, f"{message}\n".encode())
                os._exit(status)
            frame = frame.f_back
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
