"""An index by which a worker of some kinds finds its job, or none, without passing the jobs of other kinds."""

from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the index."""
    op.create_index("amcsearch_jobs_kinds", "amcsearch_jobs", ["state", "kind", "sequence"])


def downgrade() -> None:
    """Remove the index."""
    op.drop_index("amcsearch_jobs_kinds", "amcsearch_jobs")
