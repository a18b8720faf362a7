"""The errors of knowedit: one hierarchy, one sentence each.

A message says what was found, what was expected and what to do. The command line prints it on one line and
exits with its `status`; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class KnoweditError(Exception):
    """Base of every error that knowedit raises on purpose.

    - `status`: what the command line exits with: 2 for what was given, 3 for a result that was refused.
    """

    status = 2


class InputError(KnoweditError):
    """A prompt, fact, target, neuron or option that cannot be used as given."""


class ModelError(KnoweditError):
    """A model that cannot be found, read or used."""


class LayoutError(ModelError):
    """A model whose blocks or down-projections are not where the layout says."""


class DataError(KnoweditError):
    """A file that is damaged, truncated or of another schema."""


class KnoweditWarning(UserWarning):
    """Something that can be used as given, and may be not what was meant. The command line prints it as a note."""


def did_you_mean(name: str, choices: Iterable[str], n: int = 3) -> str:
    """`" (did you mean 'x' or 'y'?)"` for the names closest to `name`, or an empty string."""
    choices = list(choices)
    folded = {choice.casefold(): choice for choice in choices}
    close = [folded[c] for c in get_close_matches(name.casefold(), folded, n=n, cutoff=0.5)]
    if not close:  # a fragment of an id ("eiffel") is closer to what was meant than spelling tells
        close = [choice for choice in choices if name and name.casefold() in choice.casefold()][:n]
    return f" (did you mean {' or '.join(repr(c) for c in close)}?)" if close else ""
