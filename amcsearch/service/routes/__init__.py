"""Routes of the service, a module a subject."""

from amcsearch.service.routes import devices, files, forms, health, jobs, measured_forms, pages, table_pages, uploads

__all__ = ["ROUTERS"]

ROUTERS = (
    *(jobs.ROUTER, files.ROUTER, devices.ROUTER, health.ROUTER, uploads.ROUTER),
    *(pages.ROUTER, forms.ROUTER, table_pages.ROUTER, measured_forms.ROUTER),
)
