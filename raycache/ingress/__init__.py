"""The ingress: HTTP and Python handles, in a process without a GPU."""
