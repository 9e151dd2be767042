"""`unmask`: masked diffusion language models that write code.

    import unmask

    model = unmask.load("qwen2.5-coder-0.5b-instruct")
    print(model.generate("Write a function that reverses a string.").text)

Importing this package costs milliseconds; torch is loaded by the first `load`.
"""

from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.decode.infill import Hole, infill
    from unmask.decode.session import Model, load
    from unmask.decode.settings import DecodeSettings

_LAZY = {
    "DecodeSettings": "unmask.decode.settings",
    "Hole": "unmask.decode.infill",
    "Model": "unmask.decode.session",
    "infill": "unmask.decode.infill",
    "load": "unmask.decode.session",
}

__all__ = ["DecodeSettings", "Hole", "Model", "UnmaskError", "__version__", "infill", "load"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
