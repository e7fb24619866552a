"""One rank, in a process and on a device of its own: torch."""
