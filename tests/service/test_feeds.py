"""Followers of a job: one reader for all of them, what they are sent made once, and what ends them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from amcsearch.service.feeds import JobFeeds, Update
from amcsearch.service.job_table import NoSuchJobError
from amcsearch.service.records import JobRecord, JobState

RECORD = JobRecord("a", 1, "search", "mine", "ada", JobState.RUNNING, {}, 1, 1, 0.0, 0.0)


class Table:
    """A job whose revisions are told; asked once too often, it is gone."""

    def __init__(self, *revisions: JobRecord) -> None:
        self.revisions, self.asked = list(revisions), 0

    def get(self, job: str) -> JobRecord:
        self.asked += 1
        if not self.revisions:
            raise NoSuchJobError(f"there is no job {job}")
        return self.revisions.pop(0)


def revision(number: int, state: JobState = JobState.RUNNING) -> JobRecord:
    return replace(RECORD, revision=number, state=state)


async def revisions(updates: AsyncIterator[Update]) -> list[int]:
    return [update.record.revision async for update in updates]


def test_two_hundred_followers_have_one_reader() -> None:
    table = Table(revision(1), revision(2), revision(2), revision(4), revision(5, JobState.DONE))
    feeds, made = JobFeeds(table, 0.01), []

    def shown(record: JobRecord) -> str:
        made.append(record.revision)
        return str(record.revision)

    async def follow(after: int) -> list[str]:
        return [await update.text(shown) async for update in feeds.follow(RECORD, after)]

    async def all_of_them() -> list[list[str]]:
        return await asyncio.gather(*(follow(number % 2) for number in range(200)))

    heard = asyncio.run(all_of_them())
    assert heard == [["1", "2", "4", "5"], ["2", "4", "5"]] * 100
    assert table.asked == 5
    assert made == [1, 2, 4, 5]
    assert not feeds._feeds


def test_a_follower_that_leaves_takes_nothing_from_the_others() -> None:
    table = Table(*(revision(number) for number in range(2, 6)), revision(6, JobState.CANCELLED))

    async def follow() -> tuple[int, list[int]]:
        feeds = JobFeeds(table, 0.01)
        first = feeds.follow(RECORD, 0)
        other = asyncio.ensure_future(revisions(feeds.follow(RECORD, 0)))
        heard = (await anext(first)).record.revision
        await first.aclose()
        return heard, await other

    assert asyncio.run(follow()) == (1, [1, 2, 3, 4, 5, 6])


def test_the_last_follower_ends_the_reader() -> None:
    table = Table(*(revision(number) for number in range(2, 1000)))

    async def follow() -> int:
        feeds = JobFeeds(table, 0.001)
        follower = feeds.follow(RECORD, 0)
        for _ in range(3):
            await anext(follower)
        reader = feeds._feeds["a"].reader
        await follower.aclose()
        await reader
        return len(feeds._feeds)

    assert asyncio.run(follow()) == 0
    assert table.asked < 900


def test_what_the_reader_meets_each_follower_raises() -> None:
    async def follow() -> list[object]:
        feeds = JobFeeds(Table(), 0.01)
        return await asyncio.gather(*(revisions(feeds.follow(RECORD, 0)) for _ in range(2)), return_exceptions=True)

    assert [type(error) for error in asyncio.run(follow())] == [NoSuchJobError] * 2


@pytest.mark.parametrize(("after", "expected"), [(0, [3]), (3, [])])
def test_a_job_that_has_ended_is_told_once(after: int, expected: list[int]) -> None:
    table = Table()
    ended = revision(3, JobState.DONE)
    assert asyncio.run(revisions(JobFeeds(table, 0.01).follow(ended, after))) == expected
    assert table.asked == 0
