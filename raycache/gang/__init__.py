"""Supervision of the ranks of one engine, in its process. No torch."""
