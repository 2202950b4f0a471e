"""Alembic environment: forward-only migrations of the store."""
