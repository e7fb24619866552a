"""Ray's workers, forked like ranks instead of started: Ray runs this file in place of its own ``setup_worker.py``.

A worker that becomes a rank then takes three seconds of CPU for imports instead of fifteen; a run has hundreds of them.
`test_wheel.py`, `test_second_service.py` and `test_gpu_benchmark.py` start Ray as users do, without this.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["forked_workers"]

#: Where the servers' sockets are, in the environment that Ray hands to its workers.
_SOCKETS = "TEST_FORK_SERVERS"
_CONTEXT = "--serialized-runtime-env-context="


@contextmanager
def forked_workers() -> Iterator[None]:
    """Whatever Ray is started inside has workers of this kind, as long as this process lives.

    A process that such a one has started takes the same servers.
    """
    import pytest
    from ray._private import ray_constants

    from tests.helpers.forking import fork_servers

    with pytest.MonkeyPatch.context() as patch:
        if _SOCKETS not in os.environ:
            patch.setenv(_SOCKETS, os.pathsep.join(fork_servers()))
        # Ray joins it to the name of its own folder: an absolute path stays itself.
        patch.setattr(ray_constants, "SETUP_WORKER_FILENAME", str(Path(__file__).resolve()))
        yield


def main(arguments: list[str]) -> None:
    """Have the worker forked, be alive for as long as it is, and take it along when Ray ends this process."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.helpers.forking import ask

    context = next((json.loads(one.removeprefix(_CONTEXT)) for one in arguments if one.startswith(_CONTEXT)), {})
    language = "--language=PYTHON"
    unlike = {name: value for name, value in context.items() if value and name not in ("env_vars", "py_executable")}
    if language not in arguments or unlike or context.get("py_executable", sys.executable) != sys.executable:
        raise RuntimeError(f"only plain Python workers can be forked, not {arguments}")
    argv = [one for one in arguments if one != language and not one.startswith(_CONTEXT)]
    servers = os.environ[_SOCKETS].split(os.pathsep)
    environment = {**os.environ, **context.get("env_vars", {})}
    worker = ask(servers[os.getpid() % len(servers)], argv, (0, 1, 2), environment, os.getcwd())
    signal.signal(signal.SIGTERM, lambda *_: worker.kill())
    ended = select.poll()
    ended.register(worker.handle, select.POLLIN)
    ended.poll()


if __name__ == "__main__":
    main(sys.argv[1:])
