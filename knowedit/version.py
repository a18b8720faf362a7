"""The version of knowedit, and of what its results depend on."""

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """By name the versions that a result was made with."""
    import torch
    import transformers

    return {
        "knowedit": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
