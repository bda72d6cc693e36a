import pytest

from amcsearch.core.database import check_encoding, without_passwords
from amcsearch.core.errors import BadInputError


def test_an_address_is_shown_without_passwords() -> None:
    assert without_passwords("postgresql+psycopg://ann:se:cr@et@host/name") == "postgresql+psycopg://ann:***@host/name"
    assert without_passwords("x://host/name?sslpassword=secret&port=1") == "x://host/name?sslpassword=***&port=1"
    assert without_passwords("sqlite:///a.db") == "sqlite:///a.db"


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", None])
def test_a_database_that_does_not_hold_every_text_is_refused(encoding: str | None) -> None:
    check_encoding("UTF8", "jobs")
    with pytest.raises(BadInputError, match=f"the database jobs has the encoding {encoding}, must be UTF8; make one"):
        check_encoding(encoding, "jobs")
