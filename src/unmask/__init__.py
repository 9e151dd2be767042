"""`unmask`: masked diffusion language models that write code.

    import unmask

    model = unmask.load("qwen2.5-coder-0.5b-instruct")
    print(model.generate("Write a function that reverses a string.").text)

Importing this package costs milliseconds; torch is loaded by the first `load`.
"""

from unmask.errors import UnmaskError
from unmask.version import __version__

__all__ = ["UnmaskError", "__version__"]
