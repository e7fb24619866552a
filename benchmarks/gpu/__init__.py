"""All measurements for a machine with GPUs, in one command: ``python -m benchmarks.gpu``.

The command itself (:mod:`benchmarks.gpu.__main__`) does not load torch. Each section runs in its own process, with a
time limit, and writes each figure as soon as it is known; so a crash, a hang or too little memory costs only what was
not measured yet. :mod:`benchmarks.gpu.sections` lists them.
"""
