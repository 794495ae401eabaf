"""Kernels imported where they are used: Pallas takes a while to import, and parts of it come and go with JAX."""

import importlib
from types import ModuleType

from jaxpipe.common.logging import info_once


def kernel_module(name: str) -> ModuleType | None:
    """Returns a module of `jaxpipe.kernels`; None, with a note, where the installed JAX lacks what it imports."""
    try:
        return importlib.import_module(f"jaxpipe.kernels.{name}")
    except ImportError as error:
        info_once(f"The kernel of {name} cannot be had from this version of JAX ({error}); XLA computes it instead.")
        return None
