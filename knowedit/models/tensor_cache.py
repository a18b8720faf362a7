"""Tensors in the cache under everything that decides them: whole and checked, or not there.

A file holds its key, a small record and the SHA-256 of that record and of every tensor's bytes, and is renamed into
place when it is complete. What is truncated, altered, or belongs to another key is never used. Keys of what was made
with a model hold the hash of its parameters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from accelerate.utils import align_module_device
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ModelError
from .cache import key_of, locked, writing

BUFFER = 16 << 20  # bytes
PART = 64 << 20
HASHED_AT_ONCE = 16  # tensors, as copies where they are kept elsewhere
_log = logging.getLogger(__name__)


class TensorCache:
    """A folder of such files, made when it is first needed. `part` files are those of a run that goes on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(
        self, key: str, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32, *, part: bool = False
    ) -> tuple[dict, dict[str, Tensor]] | None:
        """The record and the tensors kept under `key`, or None where they are missing, damaged or others."""
        path = self._path(key, part)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                # copies: what a mapped file holds could change after it was checked
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            record = json.loads(metadata["record"])
            sound = (
                record["key"] == key
                and metadata["sha256"] == digest(metadata["record"], tensors)
                and {name: tuple(tensor.shape) for name, tensor in tensors.items()} == dict(shapes)
                and all(tensor.dtype == dtype for tensor in tensors.values())
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            _log.warning("%s in the cache is damaged; it is computed again", path.name)
            return None
        return record, tensors

    def write(self, key: str, record: Mapping, tensors: Mapping[str, Tensor], *, part: bool = False) -> None:
        """Keep tensors with a record of JSON values. Raises `ModelError` where the folder cannot be written."""
        text = json.dumps({**record, "key": key}, sort_keys=True)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {"record": text, "sha256": digest(text, tensors)}
        path = self._path(key, part)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=_prefix(key), dir=self.folder)
            os.close(handle)
            try:
                save_file(tensors, temporary, metadata)
                os.chmod(temporary, 0o644)  # mkstemp makes it private, others may share the cache
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise

    def remembered(
        self, request: Mapping, shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Tensor]
    ) -> Tensor:
        """What is kept for `request`, which says all that decides it; else what `make` gives, which is kept then.

        A cache that cannot be written keeps nothing.
        """
        key = key_of(request)
        if read := self.read(key, {"values": shape}, dtype):
            return read[1]["values"]
        values = make()
        with suppress(ModelError):
            self.write(key, request, {"values": values})
        return values

    def remove(self, key: str) -> None:
        """Forget the sums of a run that has come to its end."""
        self._path(key, part=True).unlink(missing_ok=True)

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Only one process at a time is in here for `key`; what killed ones left is swept first."""
        with ExitStack() as stack:
            with writing(self.folder):
                stack.enter_context(locked(self.folder / key, f"{self.folder.name} {key[:8]}"))
            for left in self.folder.glob(f"{_prefix(key)}*"):
                left.unlink(missing_ok=True)
            yield

    def _path(self, key: str, part: bool) -> Path:
        return self.folder / f"{key}.{'part' if part else 'safetensors'}"


def _prefix(key: str) -> str:
    return f".{key}.tmp-"


def digest(record: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a text and names, types, shapes and bytes of contiguous tensors on the CPU.

    Of a tensor with more than `PART` bytes it takes the SHA-256 of each part, which threads make side by side.
    """
    sha256 = hashlib.sha256(record.encode())
    with ThreadPoolExecutor() as pool:
        for name, tensor in sorted(tensors.items()):
            sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            parts = tensor.detach().flatten().view(torch.uint8).split(PART)
            if len(parts) > 1:
                sha256.update(b"".join(pool.map(_digest_of, parts)))
            else:
                take_bytes(sha256, tensor)
    return sha256.hexdigest()


def parameters_hash(module: nn.Module, name: str) -> str:
    """SHA-256 over names, types, shapes and the SHA-256 of the bytes of all parameters, wherever they are kept.

    Threads hash a few tensors at a time; what is not here is copied for as long as that takes. Raises `ModelError` for
    parameters of the model `name` that have no values.
    """
    whole = hashlib.sha256()
    waiting: deque[tuple[str, Future[bytes]]] = deque()

    def take(most: int) -> None:
        while len(waiting) > most:
            head, content_hash = waiting.popleft()
            whole.update(head.encode() + content_hash.result())

    with ThreadPoolExecutor() as pool:
        for path, part in sorted(module.named_modules()):
            with align_module_device(part):
                for own_name, weight in sorted(part.named_parameters(recurse=False)):
                    if weight.device.type == "meta":
                        raise ModelError(f"{path}.{own_name} of {name} has no values (meta); load its weights first")
                    content = weight.detach()
                    content = content.cpu() if hasattr(part, "_hf_hook") else content  # is here for as long as this
                    hashed = pool.submit(_digest_of, content)
                    waiting.append((f"{path}.{own_name} {weight.dtype} {tuple(weight.shape)} ", hashed))
                    if hasattr(part, "_hf_hook"):
                        take(HASHED_AT_ONCE)
        take(0)
    return whole.hexdigest()


def _digest_of(tensor: Tensor) -> bytes:
    sha256 = hashlib.sha256()
    take_bytes(sha256, tensor)
    return sha256.digest()


def take_bytes(sha256, tensor: Tensor) -> None:
    """Add the bytes of a tensor to a hash; those of a CUDA device come by a buffer that it fills at full speed."""
    content = tensor.detach().contiguous().flatten().view(torch.uint8)
    if content.device.type != "cuda":
        sha256.update(content.cpu().numpy())
        return
    buffer = torch.empty(min(len(content), BUFFER), dtype=torch.uint8, pin_memory=True)
    for part in content.split(BUFFER):
        sha256.update(buffer[: len(part)].copy_(part).numpy())
