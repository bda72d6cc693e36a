"""Routes of the service, a module a subject."""

from amcsearch.service.routes import devices, files, forms, health, jobs, pages, table_pages, uploads

__all__ = ["ROUTERS"]

ROUTERS = (
    *(jobs.ROUTER, files.ROUTER, devices.ROUTER, health.ROUTER, uploads.ROUTER),
    *(pages.ROUTER, forms.ROUTER, table_pages.ROUTER),
)
