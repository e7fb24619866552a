"""``raycache.app:build``: from settings to a Serve application.

No ``from __future__ import annotations`` here: Serve hands the builder a model only if its annotation is a class.
"""

from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.schema import LoggingConfig

from raycache.cluster.surge import surge_percent
from raycache.dry_run import refuse_what_cannot_work
from raycache.engine.autoscaling import autoscaling_config
from raycache.engine.engine import Engine
from raycache.gang.placement import placement_bundles
from raycache.ingress.ingress import Ingress
from raycache.settings import AppSettings
from raycache.store.store import Store
from raycache.store_settings import StoreSettings

#: Calls an ingress or engine replica takes at once beyond its jobs: status, and requests that are refused at once.
#: Serve's own queue never refuses before ours does, because its refusal is plain text without a reason.
_SLACK = 1000
#: Requests an ingress has at once: far more than jobs can wait and bodies be under way (`raycache.front.bodies`), so
#: that `/healthz` always finds a place.
_INGRESS_REQUESTS = 10_000


def build(settings: AppSettings) -> Application:
    """Bind the ingress to the engines.

    Bundles are computed here and nothing is demanded of the actors: an actor option that its bundle does not hold
    makes Serve leak the placement groups of every try.

    Raises:
        CannotWork: what can be known beforehand to fail; what serves now goes on serving.
    """
    bundles = placement_bundles(settings)
    refuse_what_cannot_work(settings, bundles)
    reliability = settings.reliability
    scaling = settings.autoscaling
    number: dict[str, Any] = {"num_replicas": settings.num_replicas}
    if scaling:
        number = {"autoscaling_config": autoscaling_config(scaling)}
    encoding, level = settings.logging.encoding, settings.logging.level
    engine = serve.deployment()(Engine).options(
        name="Engine",
        **number,
        ray_actor_options={"num_cpus": settings.parallel.engine_cpus},
        placement_group_bundles=bundles,
        placement_group_strategy="STRICT_PACK",
        max_ongoing_requests=reliability.max_queued_requests + _SLACK,
        max_constructor_retry_count=3,
        max_surge_percent=surge_percent(bundles),
        health_check_period_s=reliability.health_check_period_s,
        # It only reads what is known: a process that cannot do that in time hangs.
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=reliability.drain_timeout_s,
        # The ingress logs each request; here it would be each status poll too.
        logging_config=LoggingConfig(encoding=encoding, log_level=level, enable_access_log=False),
    )
    ingress = serve.deployment()(serve.ingress()(Ingress)).options(
        name="Ingress",
        num_replicas=settings.ingress.num_replicas,
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
        max_ongoing_requests=_INGRESS_REQUESTS,
        max_surge_percent=surge_percent([{"CPU": settings.ingress.num_cpus}]),
        health_check_period_s=reliability.health_check_period_s,
        # Serve's own 30 s would make a hang an outage of a minute and a half.
        health_check_timeout_s=settings.ingress.health_check_timeout_s,
        graceful_shutdown_timeout_s=reliability.drain_timeout_s,
        logging_config=LoggingConfig(encoding=encoding, log_level=level),
    )
    engines = engine.bind(settings)
    if settings.store is None:
        return ingress.bind(settings, engines, bundles)
    return ingress.bind(settings, engines, bundles, _store(settings, settings.store).bind(settings, engines, bundles))


def _store(settings: AppSettings, store: StoreSettings) -> Deployment:
    """One replica, and never a second beside it: each would run every job. An old one goes first."""
    encoding, level = settings.logging.encoding, settings.logging.level
    return serve.deployment()(Store).options(
        name="Store",
        num_replicas=1,
        ray_actor_options={"num_cpus": store.num_cpus},
        max_ongoing_requests=_INGRESS_REQUESTS,
        health_check_period_s=settings.reliability.health_check_period_s,
        health_check_timeout_s=30,  # a shared folder may hang for a while
        # Nothing that it is asked takes long, and jobs go on in the next one.
        graceful_shutdown_timeout_s=5,
        logging_config=LoggingConfig(encoding=encoding, log_level=level, enable_access_log=False),
    )
