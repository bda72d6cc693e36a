"""Routes of the service, a module a subject."""

from amcsearch.service.routes import devices, files, forms, health, jobs, pages, table_pages

__all__ = ["ROUTERS"]

ROUTERS = (
    *(jobs.ROUTER, files.ROUTER, devices.ROUTER, health.ROUTER),
    *(pages.ROUTER, forms.ROUTER, table_pages.ROUTER),
)
