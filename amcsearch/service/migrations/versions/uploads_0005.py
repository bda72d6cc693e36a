"""A table of files that callers sent, and who wants a measurement that belongs to no job."""

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table and the column."""
    op.create_table(
        "amcsearch_uploads",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
    )
    op.create_index("amcsearch_uploads_owners", "amcsearch_uploads", ["owner"])
    op.add_column("amcsearch_measurements", sa.Column("owner", sa.String(64)))


def downgrade() -> None:
    """Remove the table and the column."""
    op.drop_column("amcsearch_measurements", "owner")
    op.drop_table("amcsearch_uploads")
