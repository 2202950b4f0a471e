"""What a result states beside its code stands in its kind; the candidates of an order-time check come from one function."""

from alembic import op

revision = "0006"
down_revision = "0005"

_COLUMNS = {
    "method": "method class of the catalogue; null when not stated or not known",
    "site": "body site of the catalogue as the result states it",
    "laterality": "left | right | bilateral, as the result states it",
    "contrast": "without | with | without-and-with, as the result states it",
    "health_check": "yes | no: is the visit a health check; null when nobody says",
}
_KEPT = (
    ", ".join(f"k.{c}" for c in ("method", "site", "laterality", "contrast"))
    + ", k.health_check = 'yes' AS health_check"
)
_VIEW = f"""
CREATE OR REPLACE VIEW result AS
SELECT coalesce(r.start_at, r.effective_at) AS effective, coalesce(r.issued_at, r.reported_at) AS issued, r.updated AS recorded,
    NULL::timestamptz AS until, r.version, r.shard, r.backfill, r.id, r.patient, r.parent AS report, k.facility, k.performer, k.item,
    k.loinc, k.code, k.name, k.specimen, r.number, k.comparator, r.value_text, k.unit, k.unit_text, k.flag, k.range_text, r."order",
    k.status, k.mark, k.quality, {_KEPT}
FROM resource r JOIN resource_kind k ON k.id = r.tokens[1] WHERE r.rtype = 15 AND r.patient IS NOT NULL
UNION ALL
SELECT h.effective, h.issued, h.updated, h.until, h.version, h.shard, h.backfill, h.id, h.patient, h.parent, k.facility, k.performer,
    k.item, k.loinc, k.code, k.name, k.specimen, h.number, k.comparator, h.value_text, k.unit, k.unit_text, k.flag, k.range_text,
    h."order", k.status, k.mark, k.quality, {_KEPT}
FROM resource_history h JOIN resource_kind k ON k.id = h.kind WHERE h.rtype = 15
"""  # noqa: S608 - no input

# Somebody waits: the plan is made once a session. It cannot depend on the values, since every step is a look-up by key.
_FUNCTION = """
CREATE FUNCTION earlier_results(at_shard smallint, at_patient text, wanted text[], at timestamptz)
RETURNS TABLE (linked_person text, linked_grade text, found result) LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
RETURN QUERY
WITH me AS (
  SELECT i.person, i.grade FROM identity_link i
  WHERE i.shard = at_shard AND i.patient = at_patient AND i.recorded <= at AND (i.until IS NULL OR i.until > at)
), linked AS (
  SELECT l.shard, l.patient, l.person, CASE WHEN me.grade = 'certain' THEN l.grade ELSE me.grade END AS grade
  FROM me JOIN identity_link l ON l.person = me.person WHERE l.recorded <= at AND (l.until IS NULL OR l.until > at)
  UNION ALL
  SELECT at_shard, at_patient, NULL, NULL WHERE NOT EXISTS (SELECT FROM me)
)
SELECT l.person::text, l.grade::text, x.r FROM linked l LEFT JOIN LATERAL (
  SELECT r FROM result r WHERE r.shard = l.shard AND r.patient = l.patient AND r.item = ANY(wanted)
    AND r.recorded <= at AND (r.until IS NULL OR r.until > at) OFFSET 0) x ON true;
END $$
"""


def upgrade() -> None:
    """Adds the columns, widens the view, creates the function."""
    for name, comment in _COLUMNS.items():
        op.execute(f"ALTER TABLE resource_kind ADD COLUMN {name} TEXT")
        op.execute(f"COMMENT ON COLUMN resource_kind.{name} IS '{comment}'")
    op.execute(_VIEW)
    op.execute(_FUNCTION)
    op.execute(
        "COMMENT ON COLUMN ledger.kind IS 'reminder | no-answer | visit | view | feedback | decision | citation | reopened'"
    )
