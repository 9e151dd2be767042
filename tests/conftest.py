"""Two things that hold for every test: shapes are checked, and tiny tensors stay on one thread.

The shape annotations of the mathematics and of decoding become checks; outside the tests nothing reads them. The hook
must stand before the first import of these packages, so no test module is imported above it. The settings are imported
before the hook: they hold no tensors, and they refuse wrong values in their own words, which a type check would
forestall.
"""

import os

import pytest
import torch
from jaxtyping import install_import_hook

import unmask.decode.settings
import unmask.diffusion.rl_settings
import unmask.diffusion.settings  # noqa: F401

install_import_hook(["unmask.diffusion", "unmask.decode"], "beartype.beartype")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Threads that share a hundred numbers only wait for each other, on a busy machine for milliseconds a call."""
    torch.set_num_threads((os.cpu_count() or 1) if item.get_closest_marker("weights") else 1)
