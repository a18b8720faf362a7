"""`knowedit ui` says in a line what is missing or wrong."""

import socket
import sys

import pytest
from support.commands import fails


def test_a_model_that_is_not_there_is_said_before_anything_is_served(run):
    fails(run("ui", model="no-such-model"), "no-such-model")


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(run, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setattr("knowedit.cli.shared.options.ModelOptions.load", lambda self: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(
            run("ui", "--port", str(port)), f"the port {port} cannot be used (Address already in use)", "give another"
        )
    fails(run("ui", "--port", "99999"), "--port", "65535")


def test_a_missing_extra_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("knowedit.ui.")]:
        monkeypatch.delitem(sys.modules, name)
    fails(run("ui"), "pip install 'knowedit[ui]'")
