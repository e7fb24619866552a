"""Everything that a machine with GPUs can show, in one command: ``python -m benchmarks.gpu``.

The command itself (:mod:`benchmarks.gpu.__main__`) loads no torch. Each section runs in a process of its own, with a
time limit, and writes each figure down as soon as it has it; so a crash, a hang or too little memory costs only what
was not measured yet. :mod:`benchmarks.gpu.sections` lists them.
"""
