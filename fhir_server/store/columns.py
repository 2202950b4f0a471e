"""What the tables of all modules share: one collection of them, and the types of ids and times."""

from __future__ import annotations

from sqlalchemy import DateTime, MetaData, Text

metadata = MetaData()
Id = Text(collation="C")
Time = DateTime(timezone=True)
