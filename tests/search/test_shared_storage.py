"""Studies in PostgreSQL, shared by several drivers."""

import signal

from sqlalchemy import create_engine, text


def test_the_server_comes_back_after_a_crash_with_what_was_stored(postgresql, postgresql_url) -> None:
    engine = create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers AS SELECT 7 AS number"))
    postgresql.stop(signal.SIGKILL)
    postgresql.start()
    with create_engine(postgresql_url).connect() as connection:
        assert connection.execute(text("SELECT number FROM numbers")).scalar_one() == 7
