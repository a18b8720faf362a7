"""Two local Ray workers give what a serial run gives, also where records fail and a worker is killed."""

import pytest
from fake import Fake, build, records

from knowedit.errors import InputError
from knowedit.evaluate.engine import run_study

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
    import os
    from pathlib import Path

    tests = Path(__file__).parent.parent
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False, logging_level="ERROR",
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


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path):
    serial = run(tmp_path / "serial", "serial")
    flag = tmp_path / "kill"
    flag.touch()
    spread = run(tmp_path / "ray", kill=str(flag))
    assert not flag.exists(), "no worker was killed"
    assert records(spread) == records(serial)


def broken():
    raise ValueError("no such model")


def test_a_worker_that_cannot_be_made_is_said(tmp_path):
    with pytest.raises(InputError, match="a Ray worker cannot be made: .*no such model"):
        run_study(Fake(), tmp_path / "ray", engine="ray", workers=1, build=broken, progress=False)
