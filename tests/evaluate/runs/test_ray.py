"""Two local Ray workers give what a serial run gives, also where records fail and a worker is killed."""

import os
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from support import studies
from support.commands import LIMIT
from support.fake import Fake, records
from support.trained import trained

from knowedit.errors import InputError
from knowedit.evaluate.runs.engine import run_study

# Ray's own: sockets and files that are open when a worker is killed, and what it warns its users of at start
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """One Ray for all tests here: to begin one takes seconds."""
    ray = pytest.importorskip("ray")  # here, as a process that does not run these tests need not wait for it
    tests = Path(__file__).parents[2]
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False, logging_level="ERROR",
        _system_config={"worker_register_timeout_seconds": LIMIT},
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The trained model as a directory: each worker loads it, instead of training one of its own."""
    place = tmp_path_factory.mktemp("model")
    trained().hf.save_pretrained(place)
    trained().tokenizer.save_pretrained(place)
    return str(place)


FINE_TUNE = {"method": "fine_tune", "settings": {"steps": 8, "lr": 0.02}, "perplexity": True}


class Dying:
    """The trained model's edits, of which one fails; the first worker that comes to the third batch while `kill`
    exists dies."""

    def __init__(self, model: str, kill: str):
        self.study, self.kill = studies.study(10, model=model, **FINE_TUNE), kill

    def __getattr__(self, name):
        return getattr(self.study, name)

    def run(self, batch):
        if "home/fenn" in batch:
            raise InputError("home/fenn cannot be run")
        rows = self.study.run(batch)
        if batch[0] == "home/osk" and os.path.exists(self.kill):
            os.unlink(self.kill)
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


def test_real_edits_on_two_workers_are_those_of_a_serial_run_where_one_fails_a_worker_is_killed_and_it_was_begun(
    tmp_path, folder, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    build = partial(Dying, folder, str(tmp_path / "kill"))
    serial = run_study(build(), tmp_path / "serial", progress=False)
    (tmp_path / "kill").touch()
    begun = tmp_path / "begun"
    shutil.copytree(tmp_path / "serial", begun)
    lines = (begun / "records.jsonl").read_bytes().splitlines(keepends=True)
    (begun / "records.jsonl").write_bytes(lines[0])
    spread = run_study(build(), begun, resume=True, engine="ray", workers=2, build=build)
    assert not (tmp_path / "kill").exists(), "no worker was killed"
    assert records(spread) == records(serial)
    assert (spread.summary["records"], spread.summary["failed"]) == (10, 1)
    assert spread.summary["metrics"] == serial.summary["metrics"]
    assert spread.manifest["config"] == serial.manifest["config"]
    assert re.search(r"edit: 100%.*10/10 .*record", capsys.readouterr().err)


def broken():
    raise ValueError("no such model")


def test_a_worker_that_cannot_be_made_is_said(tmp_path):
    with pytest.raises(InputError, match="a Ray worker cannot be made: .*no such model"):
        run_study(Fake(), tmp_path / "ray", engine="ray", workers=1, build=broken, progress=False)
