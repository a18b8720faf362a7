"""`knowedit ui` says in a line what is missing or wrong."""

import sys

from support.commands import fails


def test_a_model_that_is_not_there_is_said_before_anything_is_served(run):
    fails(run("ui", model="no-such-model"), "no-such-model")


def test_a_missing_extra_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "knowedit.ui.app", raising=False)
    fails(run("ui"), "pip install 'knowedit[ui]'")
