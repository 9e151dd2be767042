"""The shape annotations of the mathematics and of decoding are checks while the tests run.

Outside the tests they cost nothing, since nothing reads them. The hook must stand before the first import of these
packages, so no test module is imported above it.
"""

from jaxtyping import install_import_hook

install_import_hook(["unmask.diffusion", "unmask.decode"], "beartype.beartype")
