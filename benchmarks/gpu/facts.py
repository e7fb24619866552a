"""Facts about this machine, collected by a short-lived process: python -m benchmarks.gpu.facts DEVICE.

A process that uses CUDA keeps a context on the GPU: some hundred MB, and the whole GPU if its compute mode is
exclusive. So the command itself never uses it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys

import torch

from benchmarks.gpu.plan import Device, Facts
from benchmarks.report import processor

__all__ = ["found"]

_PACKAGES = ("torch", "diffusers", "para-attn", "torchao", "triton", "ray", "cache-dit")


def found(device: str) -> Facts:
    """The machine as seen by ``device`` ("cuda" or "cpu"). A missing GPU is reported in ``problem``, not raised."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    facts = functools.partial(Facts, versions=versions, cpu=processor(), cores=os.cpu_count() or 1)
    if device == "cpu":
        return facts()
    try:
        if not torch.cuda.is_available():
            build = torch.version.cuda or "none: a build for CPUs"
            problem = (
                f"torch {torch.__version__} sees no GPU (its CUDA: {build}); nvidia-smi tells whether there is one"
            )
            return facts(problem=problem)
        devices = tuple(_device(number) for number in range(torch.cuda.device_count()))
        versions["CUDA"] = torch.version.cuda or "unknown"
        versions["cuDNN"] = str(torch.backends.cudnn.version())
        if torch.distributed.is_nccl_available():
            versions["NCCL"] = ".".join(str(part) for part in torch.cuda.nccl.version())
    except RuntimeError as error:
        return facts(problem=f"CUDA cannot be used: {error}")
    return facts(devices=devices)


def _device(number: int) -> Device:
    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    return Device(properties.name, total, free, (properties.major, properties.minor))


if __name__ == "__main__":
    print(found(sys.argv[1]).to_json())
