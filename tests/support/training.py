"""A copy of a model of which one down-projection is trained, plainly: what fine-tuning is compared with."""

from __future__ import annotations

from copy import deepcopy

import torch

from knowedit.models.adapter import Model


class Trained:
    """`hf`: the copy; `weight`: of the down-projection of `layer`, which alone takes gradients; `before`: as it was."""

    def __init__(self, model: Model, layer: int):
        self.hf = deepcopy(model.hf).requires_grad_(False)
        copy = Model(self.hf, model.tokenizer, model.layout, model.name)
        self.weight = copy.down(layer).weight.requires_grad_()
        self.before = self.weight.detach().clone()
        self._shape = model.down_shape(layer)

    @property
    def delta(self) -> torch.Tensor:
        """What was added to the weight, (out, in)."""
        delta = self.weight.detach() - self.before
        return delta if delta.shape == self._shape else delta.T
