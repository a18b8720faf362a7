"""Two local Ray workers give what a serial run gives, also where records fail and a worker is killed."""

import os
import re
import shutil
import signal
import sys
from functools import partial

import pytest
from support import studies
from support.commands import LIMIT
from support.fake import Fake, build, records
from support.trained import trained

from knowedit.errors import InputError
from knowedit.evaluate.edits.study import EditStudy
from knowedit.evaluate.runs.engine import run_study

ray = pytest.importorskip("ray")
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
    from pathlib import Path

    tests = Path(__file__).parents[2]
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False, logging_level="ERROR",
        _system_config={"worker_register_timeout_seconds": LIMIT},
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))}},
    )  # fmt: skip
    yield
    ray.shutdown()


def run(folder, engine="ray", **options):
    return run_study(
        Fake(**options), folder, engine=engine, workers=2 if engine == "ray" else 1, build=build(**options),
        progress=False,
    )  # fmt: skip


def test_two_workers_give_the_records_of_a_serial_run_also_where_one_fails(tmp_path):
    options = {"fail": ("r/5",)}
    serial = run(tmp_path / "serial", "serial", **options)
    spread = run(tmp_path / "ray", pause=0.01, **options)
    assert records(spread) == records(serial)
    assert (spread.summary["records"], spread.summary["failed"]) == (23, 1)


# ---------------------------------------------------------------- real edits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The trained model as a directory: each worker loads it, instead of training one of its own."""
    place = tmp_path_factory.mktemp("model")
    trained().hf.save_pretrained(place)
    trained().tokenizer.save_pretrained(place)
    return str(place)


FINE_TUNE = {"method": "fine_tune", "settings": {"steps": 8, "lr": 0.02}, "perplexity": True}


def real(folder, kill=""):
    """A study of the trained model's edits; the first worker that comes to the third batch while `kill` exists dies."""
    study = studies.study(model=folder, **FINE_TUNE)
    return Dying(study, kill) if kill else study


class Dying:
    def __init__(self, study: EditStudy, kill: str):
        self.study, self.kill, self.sequential = study, kill, False

    def run(self, batch):
        rows = self.study.run(batch)
        if batch[0] == "home/osk" and os.path.exists(self.kill):
            os.unlink(self.kill)
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


def test_real_edits_on_two_workers_are_those_of_a_serial_run_also_resumed_and_with_one_killed(
    tmp_path, folder, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    serial = run_study(real(folder), tmp_path / "serial", progress=False)
    spread = run_study(real(folder), tmp_path / "ray", engine="ray", workers=2, build=partial(real, folder))
    flag = tmp_path / "flag"
    flag.touch()
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "serial", cut)
    lines = (cut / "records.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "records.jsonl").write_bytes(b"".join(lines[:3]))
    again = run_study(
        real(folder), cut, resume=True, engine="ray", workers=2, build=partial(real, folder, str(flag))
    )  # fmt: skip
    assert not flag.exists(), "no worker was killed"
    for other in (spread, again):
        assert records(other) == records(serial)
        assert other.summary["metrics"] == serial.summary["metrics"]
        assert other.manifest["config"] == serial.manifest["config"]
    bars = capsys.readouterr().err
    assert len(re.findall(r"edit: 100%.*6/6 .*record", bars)) >= 2


def broken():
    raise ValueError("no such model")


def test_a_worker_that_cannot_be_made_is_said(tmp_path):
    with pytest.raises(InputError, match="a Ray worker cannot be made: .*no such model"):
        run_study(Fake(), tmp_path / "ray", engine="ray", workers=1, build=broken, progress=False)
