"""Results that are sent on to other facilities: table delivery."""

from alembic import op

revision = "0005"
down_revision = "0004"

_COMMENTS = {
    "id": "the order in which they are sent",
    "outbox": "id of the outbox row that asked for it",
    "facility": "facility that receives it",
    "destination": "name in its profile; empty: no message could be made",
    "topic": "as outbox.topic",
    "patient": "logical id of the sender''s Patient: one after the other for each destination",
    "resource": "<type>/<id>: what later corrections of it follow",
    "control_id": "MSH-10, or the request id of an HTTP delivery",
    "message": "zstd of the bytes, the same at every attempt; null when none could be made",
    "status": "waiting | delivered | dead | closed (dead, and settled by a person)",
    "due": "not to be tried before",
    "reason": "why the last attempt failed; no patient data",
}


def upgrade() -> None:
    """Creates the table. What was never told of is old by now: nobody is sent a history."""
    op.execute("UPDATE outbox SET published = created WHERE published IS NULL")
    op.execute("""
        CREATE TABLE delivery (
            shard SMALLINT NOT NULL,
            id BIGINT GENERATED ALWAYS AS IDENTITY,
            outbox BIGINT NOT NULL,
            facility TEXT NOT NULL,
            destination TEXT NOT NULL,
            topic TEXT NOT NULL,
            patient TEXT COLLATE "C",
            resource TEXT COLLATE "C" NOT NULL,
            control_id TEXT NOT NULL,
            message BYTEA,
            status TEXT NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            due TIMESTAMP WITH TIME ZONE NOT NULL,
            reason TEXT,
            created TIMESTAMP WITH TIME ZONE NOT NULL,
            delivered TIMESTAMP WITH TIME ZONE,
            PRIMARY KEY (shard, id)
        )
    """)
    op.execute("CREATE UNIQUE INDEX delivery_once ON delivery (shard, outbox, facility, destination)")
    op.execute("CREATE INDEX delivery_waiting ON delivery (facility, destination, id) WHERE status = 'waiting'")
    op.execute("CREATE INDEX delivery_order ON delivery (facility, destination, patient, id) WHERE status = 'waiting'")
    op.execute("CREATE INDEX delivery_resource ON delivery (resource)")
    op.execute("CREATE INDEX delivery_dead ON delivery (id) WHERE status = 'dead'")
    for column, text in _COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN delivery.{column} IS '{text}'")
