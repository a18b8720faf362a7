"""Batches of a study on many workers, by Ray: on this machine, or on a cluster.

Each worker has a study of its own, with its own replica of the model, and the same number of threads; it is given one
batch after the other. The driver alone writes. A worker that dies is replaced and its batch given to another; a batch
that kills three workers is recorded as failed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ...errors import InputError
from .study import Study, error_line, run_batch

DEATHS = 3  # of workers that one batch may cost
_OBJECTS = 128 << 20  # bytes that a local Ray may keep: records are small


def ray_batches(
    build: Callable[[], Study],
    batches: Sequence[list[str]],
    *,
    workers: int,
    address: str | None,
    threads: int,
    gpus: int = 0,
) -> Iterator[list[dict]]:
    """The records of `batches`, in the order in which they are done. `build` is called once in each worker, which
    claims so many `gpus`.

    Raises `InputError` where Ray is not installed, the cluster cannot be reached, or no worker can be made.
    """
    if not batches:
        return
    ray = _import()
    with _connected(ray, workers, address, threads):
        claims = {"num_cpus": 1} | ({"num_gpus": gpus} if gpus else {})  # what is not claimed a cluster hides
        new = ray.remote(**claims)(_Worker)
        yield from _balanced(ray, new, build, batches, min(workers, len(batches)), threads)


def _balanced(ray, new, build, batches, workers: int, threads: int) -> Iterator[list[dict]]:
    todo = deque(batches)
    deaths: dict[int, int] = {}  # by batch
    running = {}  # future → worker, batch

    def give(worker) -> None:
        if todo:
            batch = todo.popleft()
            running[worker.run.remote(batch)] = worker, batch

    pool = [new.remote(build, threads) for _ in range(workers)]
    _check_made(ray, pool)
    for worker in pool:
        give(worker)
    while running:
        (future,), _ = ray.wait(list(running), num_returns=1)
        worker, batch = running.pop(future)
        try:
            rows = ray.get(future)
        except ray.exceptions.RayActorError as error:
            deaths[id(batch)] = deaths.get(id(batch), 0) + 1
            worker = new.remote(build, threads)
            if deaths[id(batch)] < DEATHS:
                todo.appendleft(batch)
                give(worker)
                continue
            rows = [{"id": i, "error": f"{DEATHS} workers died of its batch: {error_line(error)}"} for i in batch]
        give(worker)
        yield rows


class _Worker:
    """A replica: one study, on its own."""

    def __init__(self, build: Callable[[], Study], threads: int):
        import torch

        torch.set_num_threads(threads)
        self.study = build()

    def ready(self) -> bool:
        return True

    def run(self, batch: list[str]) -> list[dict]:
        return run_batch(self.study, batch)


def _check_made(ray, pool: list) -> None:
    try:
        ray.get([worker.ready.remote() for worker in pool])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        last = str(cause).strip().splitlines() or [type(cause).__name__]
        raise InputError(f"a Ray worker cannot be made: {last[-1].strip()}; try the serial engine") from None


def _import():
    try:
        import ray
    except ImportError:
        raise InputError("the ray engine needs Ray: pip install 'knowedit[ray]', or use --engine serial") from None
    return ray


@contextmanager
def _connected(ray, workers: int, address: str | None, threads: int):
    """A connection to `address`, or to a Ray that is begun here for as long as the context lasts."""
    if ray.is_initialized():
        yield
        return
    options = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address is None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES alone
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": _OBJECTS}
    variables = {"OMP_NUM_THREADS": str(threads)}
    try:
        ray.init(address=address, runtime_env={"env_vars": variables}, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = "start Ray here" if address is None else f"reach the Ray cluster at {address!r}"
        raise InputError(f"cannot {where}: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()
