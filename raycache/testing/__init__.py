"""Faults on purpose, for tests, load tests and benchmarks. Nothing here runs unless requested by name."""
