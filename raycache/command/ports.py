"""Checks whether a service can listen on a port, before anything is started."""

from __future__ import annotations

import socket

__all__ = ["answers", "problem_with"]


def answers(host: str, port: int) -> bool:
    """Whether something accepts connections on this port."""
    try:
        with socket.create_connection((host or "127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def problem_with(host: str, port: int) -> str | None:
    """Why a service cannot listen there, and what would be right; None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return f"port {port} is for root only; use one from 1024 on: --port 8000"
        except OSError as error:
            if answers(host, port):
                return f"port {port} of {host} is in use; stop the process there, or use another one with --port"
            return f"cannot listen on {host}:{port}: {error.strerror}; use other values of --host and --port"
    return None
