"""A page as PDF, printed by a Chromium of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from ...errors import InputError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge", "microsoft-edge")
LIMIT = 180  # seconds


def browser() -> str:
    """The browser that prints. Raises `InputError` where none is here."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise InputError(
            "a PDF is printed by Chromium, Chrome or Edge, and none is on this machine; install one, or write .html "
            "and print it from the browser that shows it"
        )
    return found


def printed(html: str) -> bytes:
    """`html` as a PDF. Raises `InputError` where the browser prints none."""
    with TemporaryDirectory(prefix="knowedit-") as folder:
        page, pdf = Path(folder) / "page.html", Path(folder) / "page.pdf"
        page.write_text(html, encoding="utf-8")
        quiet = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            quiet.append("--no-sandbox")  # which Chromium asks of root; the page runs no code but its own
        profile, target = f"--user-data-dir={Path(folder) / 'profile'}", f"--print-to-pdf={pdf}"
        command = [browser(), *quiet, profile, "--no-pdf-header-footer", target, page.as_uri()]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
            return pdf.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(f"the browser printed no PDF ({error}); write .html and print it by hand") from None
