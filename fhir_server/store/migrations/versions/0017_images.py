"""Images: objects received, their studies until they are in the inbox, how far each archive was read."""

from alembic import op

from fhir_server.store.imaging_tables import archive_poll, archive_study, image_object, image_study

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Adds four tables."""
    for table in (image_object, image_study, archive_poll, archive_study):
        table.create(op.get_bind())
