"""The repository: tables, versions, history, bodies and flat result rows on PostgreSQL."""
