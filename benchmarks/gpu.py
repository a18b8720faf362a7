"""What people run on one GPU: seconds of each piece of work, beside the plain loop in the same run.

    python -m benchmarks.gpu --shape llama-3-8b            random weights of that shape, in bfloat16; no network
    python -m benchmarks.gpu --model smollm2-135m          a real model
    python -m benchmarks.gpu --shape tiny --device cpu     tries the script

Each piece prints one line of JSON: seconds, ratio to the loop, peak memory over the weights, and the card. All lines
are kept in `--file`. A piece that would begin after `--limit` seconds is left out, and its line says so.
"""

from __future__ import annotations

import json
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import knowedit
from knowedit.edit.covariance import Covariance, covariance
from knowedit.edit.fact_set.config import FactSetConfig, layers_for
from knowedit.edit.methods.rome import RomeConfig, rome_config, rome_many
from knowedit.edit.methods.search_rows import Request
from knowedit.edit.methods.v_star import find_v_star, request
from knowedit.edit.preserved_keys import PreservedKeys, preserved_keys
from knowedit.errors import InputError
from knowedit.evaluate.edits.metrics import both_targets
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.files import write_text
from knowedit.locate.attribution import AttributionConfig, attribute, attribute_many
from knowedit.models.adapter import Model, frozen
from knowedit.recall.trace.exact import KINDS, TraceConfig, trace
from knowedit.recall.trace.noise import draw_noise
from knowedit.version import versions

from .reference.attribution import integrated_gradients
from .reference.rome import plain_v_star
from .reference.trace import tables
from .samples import PROMPT, SUBJECT, TARGET, development
from .speed.edit import EQUAL
from .timing import alternated

SHAPES = {  # of Llama models: layers, width, neurons, heads, heads of keys, vocabulary
    "tiny": (4, 64, 96, 4, 2, 4096),
    "smollm2-135m": (30, 576, 1536, 9, 3, 49152),
    "llama-3-8b": (32, 4096, 14336, 32, 8, 128256),
}
TOKENS = {"tiny": 512}  # that C is made of; 8,192 of other shapes
LEVEL = 0.1  # of the noise in a trace


def random_model(shape: str, device: str, dtype: torch.dtype) -> Model:
    """A Llama of that shape with random weights, and a tokenizer made from the built-in facts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, neurons, heads, key_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=neurons, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            hf = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    return knowedit.wrap(hf, _tokenizer(), name=f"random {shape}")


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{fact.prompt} {fact.target}" for fact in knowedit.builtin_facts()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


class Bench:
    """The pieces of work on one model."""

    def __init__(self, model: Model, tokens: int, cache: str, together: int = 64):
        self.model, self.tokens, self.cache, self.together = model, tokens, cache, together
        self.cuda = model.device.type == "cuda"
        self.weights = sum(weight.nbytes for weight in model.hf.parameters())
        try:
            self.layer = rome_config(model).layer
        except InputError:  # a shape that no table knows
            self.layer = 1
        self.facts = development(16)
        self.contexts = tuple(fact.prompt for fact in knowedit.builtin_facts()[-20:])

    def timed(self, work: Callable[[], object], rounds: int = 1) -> tuple[float, float | None]:
        """Median seconds, and the peak memory over the weights on a CUDA device."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.wait()
        watch, _ = alternated(rounds, {"work": lambda: (work(), self.wait())})
        peak = torch.cuda.max_memory_allocated() / self.weights if self.cuda else None
        return watch.median("work"), peak

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def pieces(self) -> dict[str, Callable[[], dict]]:
        """What measures each piece, by its name."""
        return {
            "v* of 6 prompts, 25 equal steps": lambda: self.v_star(5),
            "v* of 21 prompts, 25 equal steps": lambda: self.v_star(20),
            "integrated gradients, 8 nodes, one prompt": lambda: self.gradients(1),
            "integrated gradients, 8 nodes, a prompt of 7": lambda: self.gradients(7),
            "trace of three maps, 10 draws": self.trace,
            "weights_hash": lambda: self.alone(self.model.weights_hash),
            "covariance": lambda: self.alone(lambda: self.covariance),
            "factor of C": lambda: self.alone(lambda: replace(self.covariance).solve(torch.ones(self.model.n_neurons))),
            "edit, C given": lambda: self.edit(1),
            "edit in a batch of 16, a fact": lambda: self.edit(16),
            "edit and its metrics, a record of 16": self.records,
            f"rows of a fact in a set of {self.together}": self.rows,
            f"the change of {self.together} facts in a set": self.change,
        }

    def alone(self, work: Callable[[], object]) -> dict:
        seconds, peak = self.timed(work)
        return {"seconds": seconds, "peak": peak}

    def beside(
        self,
        ours: Callable[[], object],
        loop: Callable[[], object],
        times: float = 1.0,
        rounds: int = 3,
        little: Callable[[], object] | None = None,
    ) -> dict:
        """Ours beside the loop, which does the `times`-th part of what is to be done; `little` of it warms it up."""
        ours()  # warm up
        (little or loop)()
        plain, _ = self.timed(loop)
        seconds, peak = self.timed(ours, rounds)
        return {"seconds": seconds, "loop": plain * times, "ratio": plain * times / seconds, "peak": peak}

    def v_star(self, contexts: int) -> dict:
        one = self.requests(1, contexts)
        return self.beside(
            lambda: find_v_star(self.model, one, self.layer, EQUAL),
            lambda: plain_v_star(self.model, one[0], self.layer, EQUAL),
            little=lambda: plain_v_star(self.model, one[0], self.layer, replace(EQUAL, steps=2)),
        )

    def requests(self, facts: int, contexts: int) -> list[Request]:
        texts = self.contexts[:contexts]
        return [request(self.model, fact, fact.target_new, texts) for fact in self.facts[:facts]]

    @cached_property
    def covariance(self) -> Covariance:
        layers = [self.layer]
        return covariance(self.model, layers, tokens=self.tokens, cache=self.cache, few=True)[self.layer]

    @cached_property
    def preserved(self) -> PreservedKeys:
        return preserved_keys(self.model, self.layer)

    def edits(self, n: int) -> list[knowedit.Edit]:
        config = RomeConfig(layer=self.layer, search=EQUAL, contexts=self.contexts[:5])
        return rome_many(self.model, self.facts[:n], config, covariance=self.covariance, preserved=self.preserved)

    def edit(self, n: int) -> dict:
        self.edits(1)  # warm up, with C and the preserved keys made
        seconds, peak = self.timed(lambda: self.edits(n))
        return {"seconds": seconds / n, "peak": peak}

    def records(self) -> dict:
        facts = self.facts
        pairs = [both_targets(fact) for fact in facts]
        score_edits(self.model, [None], pairs[:1])  # warm up

        def cycle() -> None:
            score_edits(self.model, [None] * len(facts), pairs)
            score_edits(self.model, self.edits(len(facts)), pairs)

        cycle()  # warm up: shapes that are met for the first time take seconds
        seconds, peak = self.timed(cycle)
        return {"seconds": seconds / len(facts), "records_a_second": len(facts) / seconds, "peak": peak}

    @cached_property
    def set(self) -> knowedit.FactSet:
        """A set of facts, with C and the preserved keys of all layers that it changes."""
        rows = RomeConfig(layer=self.layer, search=EQUAL, contexts=self.contexts[:5])
        config = FactSetConfig(rows=rows, least=1e-12)  # weights are random: what the searches find does not matter
        layers = layers_for(self.model, self.layer, self.together)
        C = covariance(self.model, layers, tokens=self.tokens, cache=self.cache, few=True)
        preserved = {layer: preserved_keys(self.model, layer) for layer in layers}
        return knowedit.FactSet(self.model, config, covariance=C, preserved=preserved)

    def rows(self) -> dict:
        facts = knowedit.builtin_facts()[: self.together + 1]
        self.set.add(facts[:1])  # warm up
        seconds, peak = self.timed(lambda: self.set.add(facts[1:]))
        return {"seconds": seconds / self.together, "peak": peak}

    def change(self) -> dict:
        """The first time, with the factors of A; `again` without a fact, when they are there."""
        seconds, peak = self.timed(self.set.edit)
        self.set.remove([next(iter(self.set)).id])
        again, _ = self.timed(self.set.edit)
        layers = len(self.set.edit().deltas)
        return {"seconds": seconds, "again": again, "layers": layers, "facts": len(self.set), "peak": peak}

    def gradients(self, prompts: int) -> dict:
        queries = [self.model.query(PROMPT, TARGET), *(self.model.query_of(fact) for fact in self.facts)][:prompts]
        config = AttributionConfig(nodes=8)

        def loop(nodes: int = 8) -> Tensor:
            prompt, target = queries[0].prompt, queries[0].target_ids[0]
            with frozen(self.model):
                return integrated_gradients(
                    self.model, prompt.ids, prompt.read, target, quadrature="gauss-legendre", nodes=nodes
                )

        def ours() -> list:
            return list(attribute_many(self.model, queries, config))

        attribute(self.model, queries[0], config=config)
        record = self.beside(ours, loop, times=prompts, rounds=1, little=lambda: loop(1))
        return record | {"seconds": record["seconds"] / prompts, "loop": record["loop"] / prompts}

    def trace(self) -> dict:
        query = self.model.query(PROMPT, TARGET, SUBJECT)
        start, end = query.prompt.subject
        config = TraceConfig()
        noise = draw_noise(self.model, LEVEL, config.draws, end - start, config.seed)
        tokens = query.prompt.read + 1 - start
        made = trace(self.model, PROMPT, TARGET, SUBJECT, replace(config, draws=1), level=LEVEL)  # warm up
        position = query.prompt.ids, [query.prompt.read], query.target_ids[:1], noise, start, made.window
        return self.beside(
            lambda: trace(self.model, PROMPT, TARGET, SUBJECT, config, level=LEVEL),
            lambda: tables(self.model, *position, KINDS, tokens=[start]),  # one of the tokens: all cost the same
            times=tokens,
            rounds=1,
            little=lambda: None,  # warm by now; it takes a minute
        )


def run(bench: Bench, limit: float = 460.0) -> Iterator[dict]:
    """A record of each piece, as it is measured."""
    started = time.perf_counter()
    card = torch.cuda.get_device_name() if bench.cuda else str(bench.model.device)
    head = {"model": bench.model.name, "dtype": str(bench.model.dtype), "layer": bench.layer, "card": card}
    for name, piece in bench.pieces().items():
        if time.perf_counter() - started > limit:
            yield {"piece": name, **head, "left_out": f"{limit:g} seconds were over"}
        else:
            yield {"piece": name, **piece(), **head}


def arguments() -> ArgumentParser:
    """The parser of `python -m benchmarks.gpu`."""
    parser = ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b", help="random weights of this shape")
    parser.add_argument("--model", help="a real model instead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--together", type=int, default=64, help="facts in a set")
    parser.add_argument("--limit", type=float, default=460.0, help="seconds after which no piece begins")
    parser.add_argument("--file", type=Path, default=Path("gpu.json"), help="where all lines are kept")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    options = arguments().parse_args(words)
    if options.model:
        model = knowedit.load(options.model, device=options.device, dtype=options.dtype)
    else:
        model = random_model(options.shape, options.device, getattr(torch, options.dtype))
    records = []
    with tempfile.TemporaryDirectory() as cache:
        tokens = 8192 if options.model else TOKENS.get(options.shape, 8192)
        for record in run(Bench(model, tokens, cache, options.together), options.limit):
            print(json.dumps(record), flush=True)
            records.append(record)
    write_text(
        options.file,
        json.dumps({"command": _command(options), "versions": versions(), "pieces": records}, indent=1) + "\n",
    )


def _command(options: Namespace) -> str:
    what = f"--model {options.model}" if options.model else f"--shape {options.shape}"
    return f"python -m benchmarks.gpu {what} --dtype {options.dtype} --together {options.together}"


if __name__ == "__main__":
    main()
