"""Silences advice of libraries to their developers; errors stay."""

from __future__ import annotations

import logging
import os
import warnings

__all__ = ["be_quiet"]

#: Loggers with messages about optional parts: kernels for other machines, future renames, torchvision.
_ADVISERS = ("torchao", "torch.utils._pytree", "torch.distributed.elastic.multiprocessing.redirects", "diffusers")


def be_quiet() -> None:
    """Apply to this process and its children; best called before importing torch, transformers and diffusers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in _ADVISERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
