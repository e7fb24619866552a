"""What Ray's cluster holds: room for a gang, a free port, room for one more."""
