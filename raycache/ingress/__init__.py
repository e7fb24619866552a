"""The front: HTTP and Python handles, in a process without a GPU. It knows engines by their handle alone."""
