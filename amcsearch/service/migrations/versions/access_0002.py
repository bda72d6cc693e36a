"""Tables of tokens and of the audit log, whose rows are only added."""

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0002"
down_revision = "0001"

_REFUSED = "the audit log is only added to"


def upgrade() -> None:
    """Make the tables, and the triggers that keep the log."""
    op.create_table(
        "amcsearch_tokens",
        sa.Column("id", sa.String(8), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("most_jobs", sa.Integer),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("expires_s", sa.Double),
        sa.Column("revoked_s", sa.Double),
    )
    op.create_table(
        "amcsearch_audit",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at_s", sa.Double, nullable=False),
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("target", sa.String(255), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER amcsearch_audit_{event.lower()} BEFORE {event} ON amcsearch_audit "
                f"BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION amcsearch_audit_kept() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSED}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER amcsearch_audit_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON amcsearch_audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION amcsearch_audit_kept()"
    )


def downgrade() -> None:
    """Remove the tables."""
    op.drop_table("amcsearch_audit")
    op.drop_table("amcsearch_tokens")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION amcsearch_audit_kept()")
