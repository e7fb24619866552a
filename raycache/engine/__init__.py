"""The Serve replica around one gang: admission, queue, answers."""
