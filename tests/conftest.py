"""Tests run offline, from the checkout, and share the builders in support/."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported anywhere
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers, and the commands that they start, share the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):  # for `import tiny` and `import benchmarks`, whatever pytest's import mode
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from support.browser import browser as browser  # noqa: E402 - here alone: two of playwright cannot run in one process

settings.register_profile(  # how fast a machine is, and what was drawn before, has no part in a test
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

THREADS = torch.get_num_threads()
COVERED = ("gpt2", "llama", "gemma2", "gptj", "bloom", "mistral", "bert")
"""One family for each thing that families do differently: Conv1D and tied weights; gates and grouped heads; norms after
a part and capped logits; attention beside the MLP; ALiBi; a window; a mask to fill in."""

LONGEST = (
    "docs/test_examples.py", "evaluate/runs/test_ray.py", "locate/test_default_model.py", "test_typing.py",
    "cli/test_cli.py", "evaluate/edits/test_metrics.py", "evaluate/edits/test_study.py", "edit/test_machine.py",
    "report/page/test_explain.py", "ui/test_app.py",
)  # fmt: skip
"""The files that take longest come first, so that no worker ends with one of them while the other has nothing to do."""


def pytest_addoption(parser):
    help = "also run the analyses without code of their own for a family on every family; before a release"
    parser.addoption("--all-families", action="store_true", help=help)


def pytest_configure(config):
    config.addinivalue_line("markers", "covered: of the families only those that differ run, unless --all-families")


def pytest_collection_modifyitems(config, items):
    rank = {HERE / name: i for i, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in rank), "LONGEST names a file that is not there"
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    if config.getoption("--all-families"):
        return
    left_out = [item for item in items if item.get_closest_marker("covered") and _family(item) not in COVERED]
    config.hook.pytest_deselected(items=left_out)
    left_out = set(left_out)
    items[:] = [item for item in items if item not in left_out]


def _family(item) -> str:
    """The family that a covered test runs on; it has to have one."""
    return item.callspec.params["family"]


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts from the same random state, alone or in a run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models spend their time waiting for a second thread; ask for `all_threads` with a real one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def all_threads(one_thread):
    torch.set_num_threads(THREADS)


@pytest.fixture
def doubled():
    """Everything in float64, also where transformers casts up to float32 inside."""
    from support.tiny import double

    with double():
        yield


@pytest.fixture(scope="session")
def default_model():
    """The real default model; the first time on a machine it is fetched and converted."""
    import knowedit

    return knowedit.load()
