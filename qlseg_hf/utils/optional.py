# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Packages that only some uses need: the right one is imported, or a sentence says why not."""

import importlib
import importlib.util
from types import ModuleType


def import_package(name: str, attribute: str, purpose: str, install: str) -> ModuleType:
    """Import an optional package when it is needed, never another module of the same name.

    Args:
        name: of the package, or of a module in it.
        attribute: that the module has, and another one of this name would not.
        purpose: what needs the package, for the sentence.
        install: what `pip install` is to be given.

    Raises:
        ModuleNotFoundError: it is not installed.
        ImportError: a file or folder that comes first on `sys.path` hides it (a script called evaluate.py does that to
            `evaluate` for scripts beside it), or it is installed and its import fails.
    """
    package = name.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # the second: a folder without __init__.py
        raise ModuleNotFoundError(f"{purpose} needs the package {package}: pip install {install}", name=package)
    hidden = f"{purpose} needs the package {package}, which {spec.origin} hides; rename that, or take it off sys.path"
    if spec.submodule_search_locations is None:  # a single file, which is not run
        raise ImportError(hidden, name=package)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {package}, whose import from {spec.origin} fails: {error}", name=package
        ) from error
    if not hasattr(module, attribute):
        raise ImportError(hidden, name=package)
    return module


__all__ = ["import_package"]
