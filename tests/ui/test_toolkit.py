"""gradio is imported without the stub files that it writes for editors of code."""

import inspect

import pytest

pytest.importorskip("gradio")

from gradio.component_meta import ComponentMeta  # noqa: E402

from knowedit.ui.toolkit import gradio, without_stubs  # noqa: E402


def test_components_get_no_stub_files():
    made = "Component", (gradio.HTML,), {"__module__": __name__}
    with without_stubs():
        component = ComponentMeta(*made)
        assert inspect.getfile(ComponentMeta) and inspect.getfile(without_stubs)
    assert inspect.getfile(component) == __file__
    with pytest.raises(ValueError, match="class source code"):  # it looks for the class in this file
        ComponentMeta(*made)
