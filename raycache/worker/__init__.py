"""One rank, with its own process and device: torch."""
