"""Faults on purpose, for tests, load tests and benchmarks. Nothing here runs unless it is asked for by name."""
