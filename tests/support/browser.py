"""A browser for pages: the Chromium of the system, driven by playwright, without any network of its own."""

import shutil

import pytest
from support.commands import LIMIT

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium with a profile of its own, gone after the tests."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine; scripts/test.sh installs it as root")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=list(QUIET), timeout=1000 * LIMIT)
        yield launched
        launched.close()
