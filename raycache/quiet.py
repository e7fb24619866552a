"""Silences advice of libraries to their developers; errors stay."""

from __future__ import annotations

import logging
import os
import warnings

__all__ = ["be_quiet"]

#: Loggers that tell of optional parts: compiled kernels for other machines, names that will change, torchvision.
_ADVISERS = ("torchao", "torch.utils._pytree", "torch.distributed.elastic.multiprocessing.redirects", "diffusers")


def be_quiet() -> None:
    """For the rest of this process, and its children; best before torch, transformers and diffusers are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in _ADVISERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
