"""gradio as the page has it: it sends nothing home, and is imported without what it does for editors of code.

Whenever gradio is imported, it parses the sources of its components and writes `.pyi` files beside them, which is two
thirds of the work of the import. It leaves out a component whose class has no file.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def without_stubs() -> Iterator[None]:
    """Components that are defined in this context get no `.pyi` files."""
    known = inspect.getfile

    def getfile(thing) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError
        return known(thing)

    with patch("inspect.getfile", getfile):
        yield


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
with without_stubs():
    import gradio as gradio


with without_stubs():

    class Factor(gradio.Slider):
        """What neurons are multiplied by. In its box nothing stands for once, and too much or little for an end."""

        is_template = True  # it is shown as the slider that it is

        def preprocess(self, payload: float | None) -> float:
            return min(max(1.0 if payload is None else payload, self.minimum), self.maximum)
