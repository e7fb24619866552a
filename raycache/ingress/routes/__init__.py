"""Routes by what they are about; :func:`raycache.ingress.api.build_http_app` puts them together."""
