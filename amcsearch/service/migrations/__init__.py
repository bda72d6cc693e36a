"""Migrations of the service's tables, by Alembic."""
