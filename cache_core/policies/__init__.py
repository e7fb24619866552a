"""One file per caching method: its decisions, and the state that they need."""
