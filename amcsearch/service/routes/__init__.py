"""Routes of the service, a module a subject."""

from amcsearch.service.routes import files, health, jobs

__all__ = ["ROUTERS"]

ROUTERS = (jobs.ROUTER, files.ROUTER, health.ROUTER)
