"""A wheel from the configured package index, where there is no pip to fetch it (as in environments that uv makes).

The index is read by the simple repository API (PEP 503 and 691). Which one is asked is what pip and uv are told: by
their variables (`PIP_INDEX_URL`, `UV_DEFAULT_INDEX`, `UV_INDEX_URL`, …), pip's configuration files, or `uv.toml`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import sys
import tomllib
from base64 import b64encode
from collections.abc import Iterator
from configparser import ConfigParser, Error as ConfigError
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.request import Request, urlopen

_VARIABLES = (
    "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL",
)  # fmt: skip
_KINDS = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_TIMEOUT = 60  # seconds without an answer


def fetch_wheel(requirement: str, folder: Path) -> Path | None:
    """The wheel of `name==version` in `folder`; None where no configured index has it, or none is configured.

    Raises `OSError` where an index cannot be reached.
    """
    name, _, version = requirement.partition("==")
    start = f"{re.sub(r'[-_.]+', '_', name)}-{version}-".lower()
    for index in dict.fromkeys(configured()):
        page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', name).lower()}/"
        for link in _links(page):
            file = unquote(urlsplit(link).path.rpartition("/")[2])
            if file.endswith(".whl") and file.lower().startswith(start):
                with _opened(link) as source, open(folder / file, "xb") as target:
                    shutil.copyfileobj(source, target)
                return folder / file
    return None


def configured() -> Iterator[str]:
    """The indexes that pip and uv are told to use, as URLs."""
    for variable in _VARIABLES:
        # uv lets a name stand before an index: name=https://…
        yield from (re.sub(r"^[\w-]+=(?=\w+:)", "", url) for url in os.environ.get(variable, "").split())
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = [Path(sys.prefix) / "pip.conf", config / "pip/pip.conf", Path.home() / ".pip/pip.conf"]
    if own := os.environ.get("PIP_CONFIG_FILE"):
        places.insert(0, Path(own))
    for place in (*places, Path("/etc/pip.conf")):
        yield from _of_pip(place)
    for place in (config / "uv/uv.toml", Path("/etc/uv/uv.toml")):
        yield from _of_uv(place)


def _of_pip(path: Path) -> Iterator[str]:
    parser = ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except (ConfigError, ValueError):
        return
    for section in parser.sections():
        for option in ("index-url", "extra-index-url"):
            yield from parser.get(section, option, fallback="").split()


def _of_uv(path: Path) -> Iterator[str]:
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    found = [*(index.get("url") for index in config.get("index", ())), config.get("index-url")]
    yield from (url for url in [*found, *config.get("extra-index-url", ())] if isinstance(url, str))


def _links(page: str) -> list[str]:
    """The files on a project's page; those on the page's own host with its name and password."""
    login, at, host = urlsplit(page).netloc.rpartition("@")
    with _opened(urljoin(page, "index.html") if page.startswith("file:") else page) as answer:
        text, base = answer.read().decode("utf-8", "replace"), page if page.startswith("file:") else answer.geturl()

    def linked(url: str) -> str:
        return urljoin(base, url).replace(f"://{host}/", f"://{login}{at}{host}/", 1)

    if text.lstrip().startswith("{"):
        return [linked(file["url"]) for file in json.loads(text)["files"]]
    files: list[str] = []

    class Anchors(HTMLParser):
        def handle_starttag(self, tag, attributes):
            files.extend(linked(value) for key, value in attributes if (tag, key) == ("a", "href") and value)

    Anchors().feed(text)
    return files


def _opened(url: str):
    """The answer to a request; a name and a password in the URL are sent as a header, to that host alone."""
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host)), headers={"Accept": _KINDS})
    if login:
        request.add_unredirected_header("Authorization", "Basic " + b64encode(unquote(login).encode()).decode())
    certificates = next((os.environ[v] for v in ("PIP_CERT", "REQUESTS_CA_BUNDLE") if os.environ.get(v)), None)
    context = ssl.create_default_context(cafile=certificates) if parts.scheme == "https" else None
    return urlopen(request, timeout=_TIMEOUT, context=context)
