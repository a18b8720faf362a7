"""Fact sets of the tiny trained model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from support import trained as tiny

from knowedit import Fact, FactSet, Model, RomeConfig
from knowedit.edit import Covariance
from knowedit.edit.fact_set.config import FactSetConfig
from knowedit.edit.fact_set.memit import Memit
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.models.passes.replay import record

SHORT = VStarSearch(steps=3, lr=0.2, clamp=80.0, decay=0.0)  # for algebra: the model need not follow
LONG = VStarSearch(steps=40, lr=0.2, clamp=80.0, decay=0.0)


def config(layers=(0,), solver=Memit(0.1), search=SHORT, key_contexts=1, **rows) -> FactSetConfig:  # noqa: B008
    rows = {"contexts": ("a b",), "preserve": 0.0, **rows}
    return FactSetConfig(layers, RomeConfig(search=search, **rows), solver, least=1e-9, key_contexts=key_contexts)


def requests() -> list[Fact]:
    """All facts of the model, each with the next answer of its relation as the new one."""
    answers = {"home": tiny.CITIES, "work": tiny.JOBS}

    def new(fact: Fact) -> str:
        known = answers[fact.relation]
        return known[(known.index(fact.target) + 1) % len(known)]

    return [replace(fact, target_new=new(fact)) for fact in tiny.facts()]


def covariances(model: Model) -> dict[int, Covariance]:
    """C of every layer, of the keys of the facts' prompts."""
    recorded = [record(model, model.encode(fact.prompt).ids).neurons for fact in tiny.facts()]
    found = {}
    for layer in range(model.n_layers):
        keys = torch.cat([neurons[layer] for neurons in recorded])
        found[layer] = Covariance(layer, keys.T @ keys / len(keys), len(keys), {})
    return found


@cache
def _covariances() -> dict[int, Covariance]:
    return covariances(tiny.trained())


def fact_set(**settings) -> FactSet:
    """An empty set of the trained model."""
    return FactSet(tiny.trained(), config(**settings), covariance=_covariances())


def loaded(folder) -> FactSet:
    return FactSet.load(tiny.trained(), folder, covariance=_covariances())
