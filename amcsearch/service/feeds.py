"""Changes of jobs for any number of followers: one reader asks the job table for each job that anybody follows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from anyio.to_thread import run_sync

from amcsearch.service.job_table import JobTable
from amcsearch.service.records import JobRecord

__all__ = ["JobFeeds", "Update"]


class Update:
    """A job as it is now; what followers are sent of it is made once for all of them."""

    def __init__(self, record: JobRecord) -> None:
        self.record = record
        self._texts: dict[str, asyncio.Future[str]] = {}

    async def text(self, make: Callable[[JobRecord], str]) -> str:
        """Return what ``make`` makes of the job, in a thread; functions of one name make the same."""
        name = make.__qualname__
        if name not in self._texts:
            self._texts[name] = asyncio.ensure_future(run_sync(make, self.record))
        return await asyncio.shield(self._texts[name])  # a follower that leaves takes it from nobody


class _Feed:
    """The latest update of one job, or why it cannot be read any more."""

    def __init__(self, record: JobRecord) -> None:
        self.latest = Update(record)
        self.error: Exception | None = None
        self.followers = 0
        self.changed = asyncio.Event()
        self.reader: asyncio.Task[None] | None = None

    def publish(self, record: JobRecord | None, error: Exception | None = None) -> None:
        """Wake every follower."""
        if record is not None:
            self.latest = Update(record)
        self.error = error
        earlier, self.changed = self.changed, asyncio.Event()
        earlier.set()


class JobFeeds:
    """The jobs that are followed; ``poll_s`` lies between two looks at one."""

    def __init__(self, table: JobTable, poll_s: float) -> None:
        self._table, self._poll_s = table, poll_s
        self._feeds: dict[str, _Feed] = {}

    async def follow(self, record: JobRecord, revision: int) -> AsyncIterator[Update]:
        """Give the job at each change after ``revision`` until it has ended.

        Args:
            record: of the job, just read.
            revision: the last that the follower has.

        Raises:
            NoSuchJobError: the job was removed.
            sqlalchemy.exc.OperationalError: the database is away.
        """
        feed = self._joined(record)
        try:
            while True:
                if feed.error is not None:
                    raise feed.error
                changed, latest = feed.changed, feed.latest
                if latest.record.revision > revision:
                    revision = latest.record.revision
                    yield latest
                if latest.record.has_ended:
                    return
                await changed.wait()
        finally:
            self._left(record.id, feed)

    def _joined(self, record: JobRecord) -> _Feed:
        feed = self._feeds.get(record.id)
        if feed is None or feed.error is not None or feed.latest.record.has_ended:
            feed = self._feeds[record.id] = _Feed(record)
            if not record.has_ended:
                feed.reader = asyncio.ensure_future(self._read(feed))
        elif record.revision > feed.latest.record.revision:
            feed.publish(record)
        feed.followers += 1
        return feed

    def _left(self, job: str, feed: _Feed) -> None:
        """The last follower ends the reader."""
        feed.followers -= 1
        if feed.followers:
            return
        if feed.reader is not None:
            feed.reader.cancel()
        if self._feeds.get(job) is feed:
            del self._feeds[job]

    async def _read(self, feed: _Feed) -> None:
        with suppress(asyncio.CancelledError):
            while not feed.latest.record.has_ended:
                await asyncio.sleep(self._poll_s)
                try:
                    record = await run_sync(self._table.get, feed.latest.record.id)
                except Exception as error:  # each follower raises it
                    feed.publish(None, error)
                    return
                if record.revision > feed.latest.record.revision:
                    feed.publish(record)
