"""Tests run offline, from the checkout, and share the builders in tiny.py."""

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

THREADS = torch.get_num_threads()


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
