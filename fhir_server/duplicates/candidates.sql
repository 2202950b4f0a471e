-- Earlier results that could cover an order: written once, for PostgreSQL, DuckDB (over Parquet) and Spark. It is over-inclusive;
-- decide() judges each pair. Relations it reads:
--   placed  number, orderable, at, first     one row an order; first: before it nothing can be inside any window
--   linked  number, shard, patient           the Patients that ever shared a person with the one ordered for
--   wanted  orderable, item, loinc           the items it requires
--   result  the flat result rows, every version
-- A row without an item is looked at too: later versions, or its LOINC code, may tell what it is.
SELECT p.number AS placed_number, r.*
FROM placed p
JOIN linked l ON l.number = p.number
JOIN result r ON r.shard = l.shard AND r.patient = l.patient
WHERE coalesce(r.effective, r.issued, p.at) <= p.at
  AND coalesce(r.effective, r.issued, p.at) >= p.first
  AND (r.item IS NULL OR EXISTS (SELECT 1 FROM wanted w WHERE w.orderable = p.orderable AND w.item = r.item))
