"""FT and FT-L: fine-tune one layer's down-projection on the new answer, the baselines of ROME (Meng et al. 2022).

Minimised is the mean NLL of the new target's tokens on the main prompt, teacher-forced, by Adam on ΔW (out, in) alone:

    L(ΔW) = −(1/|o|) Σ_j log P_{W+ΔW}(o_j | prompt, o_<j)

FT leaves ΔW free; FT-L clamps each entry to [−ε, ε] after every step. The loop ends where L falls below `stop_loss`.
Compared with the published code: for a target of several tokens that reads all of them off the prompt's last token
(here each at its own), and it trains the projection's bias too (here only the weight, as an edit has it).

ΔW is trained beside the weight, which is never written: the neurons x of the edited layer do not depend on ΔW, so its
output is the recorded W x plus ΔW x, and only blocks from that layer upwards run in the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import InputError
from ..facts import Fact
from ..hooks import hooked, on_output
from ..models.adapter import Model, frozen
from ..models.replay import Recording, record
from ..prompts import Query
from .delta import Dense, Edit
from .making import check_request, make_edit


@dataclass(frozen=True)
class FineTuneConfig:
    """How ΔW is trained; the names in ROME's files are in brackets. Without a weight decay, as published.

    - `layer`: whose down-projection [layers]; `steps`: at most [num_steps]; `lr`: Adam's.
    - `norm_constraint`: ε of FT-L, the largest change of an entry; None for FT.
    - `stop_loss`: stop when the loss, in nats a token, is below it.
    """

    layer: int = 0
    steps: int = 25
    lr: float = 5e-4
    norm_constraint: float | None = None
    stop_loss: float = 1e-2

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"steps are {self.steps!r}, expected a whole number of at least 1")
        if not self.lr > 0:
            raise InputError(f"lr is {self.lr!r}, expected a number above 0")
        if self.norm_constraint is not None and not self.norm_constraint > 0:
            raise InputError(f"norm_constraint is {self.norm_constraint!r}, expected a number above 0, or None for FT")
        if not self.stop_loss >= 0:
            raise InputError(f"stop_loss is {self.stop_loss!r}, expected 0 or more")


# What was published with ROME and is used with EasyEdit, by model. The paper chose layer and ε of each by its Score.
PUBLISHED: Mapping[tuple[str, str], FineTuneConfig] = MappingProxyType(
    {
        ("FT", "gpt2-xl"): FineTuneConfig(layer=1),
        ("FT", "gpt-j-6b"): FineTuneConfig(layer=21),
        ("FT-L", "gpt2-medium"): FineTuneConfig(layer=0, norm_constraint=2e-3),
        ("FT-L", "gpt2-large"): FineTuneConfig(layer=0, norm_constraint=1e-3),
        ("FT-L", "gpt2-xl"): FineTuneConfig(layer=0, norm_constraint=5e-4),
        ("FT-L", "gpt-j-6b"): FineTuneConfig(layer=0, norm_constraint=5e-5),
    }
)


def fine_tune(model: Model, fact: Fact, config: FineTuneConfig | None = None) -> Edit:
    """The edit that makes `model` continue the prompt of `fact` with its `target_new`, by gradient descent on ΔW.

    ```python
    ft_l = knowedit.fine_tune(model, fact, FineTuneConfig(layer=0, norm_constraint=5e-4))
    ```

    The change is `Dense`, and zero where the model says `target_new` already. The edit's notes hold `steps` (updates
    made), `losses` (nats a token, before each update), `loss` (at the end) and `norm` (‖ΔW‖ / ‖W‖, Frobenius).
    Raises `InputError` for a fact without a usable `target_new`, for a layer that is not there and where training
    diverges.
    """
    config = config or FineTuneConfig()
    layer = model.check_layer(config.layer)
    prompts = _prompts(model, model.query(fact.prompt, check_request(fact), fact.subject))
    delta, losses, loss = _train(model, prompts, config)
    weight = model.down_weight(layer).detach().float()
    return make_edit(
        model,
        {layer: Dense(delta)},
        method="fine_tune",
        config=asdict(config),
        facts=(fact,),
        notes={
            "steps": len(losses) - (losses[-1] < config.stop_loss),
            "losses": losses,
            "loss": loss,
            "norm": (delta.norm() / weight.norm().to(delta.device)).item(),
        },
    )


@dataclass(frozen=True)
class _Prompt:
    """A recorded run, and where in it which tokens of the target are predicted."""

    recording: Recording
    reads: list[int]
    tokens: list[int]


def _prompts(model: Model, query: Query) -> list[_Prompt]:
    """One run for a decoder, in which every target token has its position; for a masked model one run a token."""
    reads = [step.read for step in query.steps]
    if not model.masked:
        return [_Prompt(record(model, query.steps[-1].ids), reads, list(query.target_ids))]
    runs = zip(query.steps, reads, query.target_ids, strict=True)
    return [_Prompt(record(model, step.ids), [read], [token]) for step, read, token in runs]


def _train(model: Model, prompts: list[_Prompt], config: FineTuneConfig) -> tuple[Tensor, list[float], float]:
    """ΔW (out, in), the loss before each step that was begun, and the loss at the end."""
    neurons = prompts[0].recording.neurons[config.layer]
    delta = torch.zeros(model.down_shape(config.layer), device=neurons.device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.lr)
    losses = []
    with frozen(model), torch.enable_grad():
        for _ in range(config.steps):
            loss = _loss(model, prompts, config.layer, delta)
            losses.append(_finite(loss, config))
            if losses[-1] < config.stop_loss:
                return delta.detach(), losses, losses[-1]
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            adam.step()
            if config.norm_constraint is not None:
                with torch.no_grad():
                    delta.clamp_(-config.norm_constraint, config.norm_constraint)
        with torch.no_grad():
            final = _finite(_loss(model, prompts, config.layer, delta), config)
    return delta.detach(), losses, final


def _finite(loss: Tensor, config: FineTuneConfig) -> float:
    if not loss.isfinite():
        raise InputError(f"training diverged: the loss became {loss.item()}; take a smaller lr than {config.lr}")
    return loss.item()


def _loss(model: Model, prompts: list[_Prompt], layer: int, delta: Tensor) -> Tensor:
    """Mean NLL of the target's tokens with ΔW beside the weight of `layer`."""
    log_p = [_log_p(model, prompt, layer, delta) for prompt in prompts]
    return -torch.cat(log_p).mean()


def _log_p(model: Model, prompt: _Prompt, layer: int, delta: Tensor) -> Tensor:
    """log P of the target tokens that are read in this run, (tokens,)."""
    recording = prompt.recording
    shift = recording.neurons[layer].to(delta) @ delta.T
    with hooked(on_output(model.down(layer), lambda output: output + shift.reshape(output.shape).to(output))):
        hidden = recording.block(layer, recording.inputs[layer])
    for above in range(layer + 1, model.n_layers):
        hidden = recording.block(above, hidden)
    log_p = model.logits(model.normed(hidden[0, prompt.reads])).float().log_softmax(-1)
    return log_p[torch.arange(len(prompt.tokens)), prompt.tokens]
