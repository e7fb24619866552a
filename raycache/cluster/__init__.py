"""The resources of Ray's cluster: room for a gang, a free port, room for one more engine."""
