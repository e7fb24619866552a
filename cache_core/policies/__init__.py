"""One caching method, one file: what it decides, and what it remembers for that."""
