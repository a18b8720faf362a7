"""No edit at all: what a benchmark asks the unedited model, in the place of one that is edited."""

from __future__ import annotations

from dataclasses import dataclass

from .method import Editor, Method


@dataclass(frozen=True)
class NoneConfig:
    """Nothing is to be set."""


METHOD = Method(NoneConfig, lambda model, config, facts, bars: Editor(lambda facts: [None] * len(facts)))
