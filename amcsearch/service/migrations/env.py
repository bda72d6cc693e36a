"""Alembic's entry: run migrations in the transaction that ``database`` has begun, beside Optuna's own."""

from alembic import context

__all__ = []

context.configure(
    connection=context.config.attributes["connection"],
    version_table="amcsearch_version",  # Optuna's tables in the same database have alembic_version
    transaction_per_migration=False,
)
context.run_migrations()
