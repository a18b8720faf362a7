"""Ctrl-C in the middle of an import ends a command in one line; at other moments it is what it always is."""

import signal
import subprocess
import sys
import threading

import pytest
from support.commands import LIMIT

from knowedit.cli.shared.interrupts import leaving_while_importing

MODULE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**7):
        pass
except KeyboardInterrupt:
    raise ImportError("what a module makes of it")
"""
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background has it ignored
from knowedit.cli.shared.interrupts import leaving_while_importing
with leaving_while_importing("interrupted", 130):
    import interrupting
"""


def test_an_interrupt_while_a_module_is_imported_is_one_line(tmp_path):
    (tmp_path / "interrupting.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"],
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.fixture
def handled():
    """SIGINT as a terminal has it; what runs in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_at_other_moments_it_can_be_caught_and_the_handler_is_put_back(handled):
    with pytest.raises(KeyboardInterrupt), leaving_while_importing("interrupted", 130):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_it_is_ignored_it_stays_ignored(handled):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with leaving_while_importing("interrupted", 130):
        signal.raise_signal(signal.SIGINT)


def test_a_thread_has_no_handler_to_set():
    def work():
        with leaving_while_importing("interrupted", 130):
            entered.set()

    entered = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert entered.is_set()
