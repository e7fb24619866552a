"""For locust's own command line and web UI:

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000                  # then open 127.0.0.1:8089
    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --class-picker   # choose users and shape there
    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless --users 8 --run-time 60s
    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless --users 4 --shape Burst OpenLoop

A user is a client that waits for its answer and asks again (``ClosedLoop``) unless ``OpenLoop`` is named: then the
number of users times ``--rate-per-user`` is the arrival rate. ``--processes`` distributes the users, and each process
seeds its users with ``--seed`` and its number. Repeated images are compared within one process.
``python -m loadtests.run`` runs the prepared scenarios and writes the report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from locust import events

from loadtests.mix import load_mix
from loadtests.shapes import Burst, Steps
from loadtests.users import ClosedLoop, OpenLoop, Plan

__all__ = ["Burst", "ClosedLoop", "OpenLoop", "Steps"]


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.set_defaults(web_host="127.0.0.1")  # locust's default is every interface, where anyone could start a test
    parser.add_argument("--mix", default=str(Path(__file__).with_name("mix.yaml")), help="weighted requests, YAML")
    parser.add_argument("--rate-per-user", type=float, default=0.05, help="arrivals per second of one OpenLoop user")
    parser.add_argument("--abandonment", type=float, default=0.0, help="share of clients that hang up")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and choices")
    parser.add_argument(
        "--shape",
        choices=["", Burst.__name__, Steps.__name__],
        default="",
        help="how the number of users changes; with --class-picker the web UI asks for it",
        include_in_web_ui=False,
    )


@events.init.add_listener
def _check(environment: Any, **_: Any) -> None:
    """Stop the start if the mix is invalid: locust only logs what a listener raises."""
    try:
        load_mix(Path(environment.parsed_options.mix))
    except ValueError as error:
        raise SystemExit(f"--mix: {error}") from None


@events.init.add_listener
def _choose(environment: Any, **_: Any) -> None:
    """Default users and shape: locust itself would take all users of the file, and its first shape."""
    options = environment.parsed_options
    environment.shape_class = environment.available_shape_classes[options.shape] if options.shape else None
    if environment.shape_class is not None:
        environment.shape_class.runner = environment.runner
    if not options.user_classes:
        environment.user_classes = [environment.available_user_classes[ClosedLoop.__name__]]


@events.test_start.add_listener
def _plan(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    environment.plan = Plan(
        load_mix(Path(options.mix)),
        rate_per_user=options.rate_per_user,
        abandonment=options.abandonment,
        seed=options.seed,
        # A master has no number and no users.
        worker=getattr(environment.runner, "worker_index", 0),
    )
