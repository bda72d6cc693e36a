"""Tables of jobs and workers."""

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "amcsearch_jobs",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("idempotency_key", sa.String(128)),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("is_cancel_asked", sa.Boolean, nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("lease_until_s", sa.Double),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("changed_s", sa.Double, nullable=False),
        sa.Column("started_s", sa.Double),
        sa.Column("ended_s", sa.Double),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("problem", sa.JSON),
        sa.UniqueConstraint("owner", "idempotency_key", name="amcsearch_jobs_idempotency"),
    )
    op.create_index("amcsearch_jobs_queue", "amcsearch_jobs", ["state", "sequence"])
    op.create_index("amcsearch_jobs_leases", "amcsearch_jobs", ["state", "lease_until_s"])
    op.create_table(
        "amcsearch_workers",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("kinds", sa.JSON, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("job", sa.String(32)),
        sa.Column("begun_s", sa.Double, nullable=False),
        sa.Column("seen_s", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Remove the tables."""
    op.drop_table("amcsearch_workers")
    op.drop_table("amcsearch_jobs")
