"""``raycache.app:build``: from settings to a Serve application.

No ``from __future__ import annotations`` here: Serve passes the builder a model only if its annotation is a class.
"""

from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.schema import LoggingConfig

from raycache.cluster.surge import surge_percents
from raycache.dry_run import refuse_what_cannot_work
from raycache.engine.autoscaling import autoscaling_config
from raycache.engine.engine import Engine
from raycache.gang.placement import placement_bundles
from raycache.ingress.ingress import Ingress
from raycache.settings import AppSettings, ServiceSettings
from raycache.store.store import Store
from raycache.store_settings import StoreSettings

#: Calls that an ingress or engine replica takes in addition to its jobs: status, and requests refused immediately.
#: Serve's own queue must never refuse first, because its refusal is plain text without a reason.
_SLACK = 1000
#: Maximum concurrent requests of an ingress: far more than waiting jobs and open bodies (`raycache.front.bodies`), so
#: that `/healthz` always gets through.
_INGRESS_REQUESTS = 10_000


def build(settings: ServiceSettings) -> Application:
    """Bind the ingress to the engines of each model.

    Bundles are computed here, and actors request no resources: an actor option that does not fit its bundle makes Serve
    leak the placement groups of every try.

    Raises:
        CannotWork: the settings cannot work; running engines keep serving.
    """
    bundles = {one.model.name: placement_bundles(one) for one in settings.engines}
    refuse_what_cannot_work(settings, bundles)
    # For Serve any change of the settings is new code, so all engines are replaced at the same time.
    surges = surge_percents(list(bundles.values()))
    engines = {
        one.model.name: _engines(one, settings.deployment(one.model.name), bundles[one.model.name], surge)
        for one, surge in zip(settings.engines, surges, strict=True)
    }
    (surge,) = surge_percents([[{"CPU": settings.ingress.num_cpus}]])
    ingress = serve.deployment()(serve.ingress()(Ingress)).options(
        name="Ingress",
        num_replicas=settings.ingress.num_replicas,
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
        max_ongoing_requests=_INGRESS_REQUESTS,
        max_surge_percent=surge,
        health_check_period_s=settings.reliability.health_check_period_s,
        # With Serve's default of 30 s a hang would be an outage of 90 s.
        health_check_timeout_s=settings.ingress.health_check_timeout_s,
        graceful_shutdown_timeout_s=max(one.reliability.drain_timeout_s for one in settings.engines),
        logging_config=LoggingConfig(encoding=settings.logging.encoding, log_level=settings.logging.level),
    )
    if settings.store is None:
        return ingress.bind(settings, engines, bundles)
    return ingress.bind(settings, engines, bundles, _store(settings, settings.store).bind(settings, engines, bundles))


def _engines(settings: AppSettings, name: str, bundles: list[dict[str, float]], surge: int) -> Application:
    """The engines of one model as a deployment with this name."""
    reliability, scaling = settings.reliability, settings.autoscaling
    number: dict[str, Any] = {"num_replicas": settings.num_replicas}
    if scaling:
        number = {"autoscaling_config": autoscaling_config(scaling)}
    encoding, level = settings.logging.encoding, settings.logging.level
    engine = serve.deployment()(Engine).options(
        name=name,
        **number,
        ray_actor_options={"num_cpus": settings.parallel.engine_cpus},
        placement_group_bundles=bundles,
        placement_group_strategy="STRICT_PACK",
        max_ongoing_requests=reliability.max_queued_requests + _SLACK,
        max_constructor_retry_count=3,
        max_surge_percent=surge,
        health_check_period_s=reliability.health_check_period_s,
        # The check only reads known values: a process that cannot do that in time hangs.
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=reliability.drain_timeout_s,
        # The ingress logs each request; here every status poll would be logged, too.
        logging_config=LoggingConfig(encoding=encoding, log_level=level, enable_access_log=False),
    )
    return engine.bind(settings)


def _store(settings: ServiceSettings, store: StoreSettings) -> Deployment:
    """One replica, never two at the same time, which would run every job twice: the old one is stopped first."""
    encoding, level = settings.logging.encoding, settings.logging.level
    return serve.deployment()(Store).options(
        name="Store",
        num_replicas=1,
        ray_actor_options={"num_cpus": store.num_cpus},
        max_ongoing_requests=_INGRESS_REQUESTS,
        health_check_period_s=settings.reliability.health_check_period_s,
        health_check_timeout_s=30,  # a shared folder may block for a while
        # Its calls are short, and jobs continue in the next replica.
        graceful_shutdown_timeout_s=5,
        logging_config=LoggingConfig(encoding=encoding, log_level=level, enable_access_log=False),
    )
