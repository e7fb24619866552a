"""Routes by topic; :func:`raycache.ingress.api.build_http_app` combines them."""
