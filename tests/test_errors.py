"""One hierarchy, and hints that help."""

import pytest

from knowedit import errors
from knowedit.errors import did_you_mean


@pytest.mark.parametrize("name", ["InputError", "ModelError", "LayoutError", "DataError"])
def test_everything_raised_on_purpose_is_a_knowedit_error(name):
    assert issubclass(getattr(errors, name), errors.KnoweditError)


def test_a_layout_error_is_a_model_error():
    assert issubclass(errors.LayoutError, errors.ModelError)
    assert not issubclass(errors.InputError, errors.ModelError)


def test_hints():
    assert did_you_mean("gaus-legendre", ["gauss-legendre", "left"]) == " (did you mean 'gauss-legendre'?)"
    assert did_you_mean("SMOLLM2", ["smollm2-135m"]) == " (did you mean 'smollm2-135m'?)"
    assert did_you_mean("eiffel", ["P131-the-eiffel-tower-in-the-city", "other"]).count("eiffel") == 1
    assert did_you_mean("xyz", ["alpha", "beta"]) == ""
    assert did_you_mean("", ["alpha"]) == ""
    assert did_you_mean("a", []) == ""
    assert did_you_mean("rat", ["cat", "bat", "hat", "mat"], n=2).count("'") == 4


def test_hints_may_come_from_a_generator():
    assert "'left'" in did_you_mean("lft", (name for name in ("left", "right")))
