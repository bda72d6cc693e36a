"""The HTTP interface of a service as a FastAPI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from amcsearch import __version__
from amcsearch.runs import make_folder
from amcsearch.service.access import Guard
from amcsearch.service.allowed import Allowed
from amcsearch.service.database import Database
from amcsearch.service.device_table import DeviceTable
from amcsearch.service.devices import DEVICE_FOLDER, DeviceWork
from amcsearch.service.feeds import JobFeeds
from amcsearch.service.job_table import JobTable
from amcsearch.service.problems import add_problem_handlers
from amcsearch.service.rendering import STATIC
from amcsearch.service.routes import ROUTERS
from amcsearch.service.running import Service
from amcsearch.service.settings import ServiceSettings
from amcsearch.service.tokens import TokenTable
from amcsearch.service.uploads import UploadTable

__all__ = ["create_app"]


def create_app(settings: ServiceSettings) -> FastAPI:
    """Return the application of a service; its database is opened and brought up to date.

    Raises:
        BadInputError: a database that cannot be opened, or a folder of runs that cannot be made.
    """
    make_folder(settings.runs)
    database = Database(settings.database_url)
    devices = DeviceTable(database)
    work = DeviceWork(settings.runs / DEVICE_FOLDER, devices)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with work.answering():
            yield
        database.close()

    # FastAPI's own pages of documentation load scripts from elsewhere
    app = FastAPI(title="amcsearch", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    tokens, allowed = TokenTable(database), Allowed(settings.runs, settings.factories, settings.folders)
    table = JobTable(database)
    feeds = JobFeeds(table, settings.poll_s)
    uploads = UploadTable(database, settings.runs, settings.limits)
    app.state.service = Service(settings, table, tokens, allowed, feeds, devices, work, uploads)
    app.add_middleware(Guard, tokens=tokens)
    add_problem_handlers(app)
    app.mount("/static", StaticFiles(directory=STATIC))
    for router in ROUTERS:
        app.include_router(router)
    return app
