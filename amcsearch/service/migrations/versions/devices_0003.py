"""Tables of devices with agents, and the device that a queued job waits for."""

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables and the column."""
    op.add_column("amcsearch_jobs", sa.Column("device", sa.String(64)))
    op.create_table(
        "amcsearch_devices",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("says", sa.JSON, nullable=False),
        sa.Column("measurement", sa.String(64)),
        sa.Column("records", sa.Integer, nullable=False),
        sa.Column("expected", sa.Integer, nullable=False),
        sa.Column("begun_s", sa.Double, nullable=False),
        sa.Column("seen_s", sa.Double, nullable=False),
    )
    op.create_table(
        "amcsearch_measurements",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("job", sa.String(32), nullable=False),
    )
    op.create_table(
        "amcsearch_device_requests",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("method", sa.String(8), nullable=False),
        sa.Column("target", sa.String(2048), nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("status", sa.Integer),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("asked_s", sa.Double, nullable=False),
    )
    op.create_index("amcsearch_device_requests_open", "amcsearch_device_requests", ["status"])


def downgrade() -> None:
    """Remove the tables and the column."""
    op.drop_table("amcsearch_device_requests")
    op.drop_table("amcsearch_measurements")
    op.drop_table("amcsearch_devices")
    op.drop_column("amcsearch_jobs", "device")
