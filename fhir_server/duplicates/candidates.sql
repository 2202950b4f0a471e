-- Earlier results that could cover an order: written once, for PostgreSQL, DuckDB (over Parquet) and Spark. It is over-inclusive;
-- decide() judges each pair. Relations it reads:
--   placed   number, orderable, at, first   one row an order; first: before it nothing can be inside any window
--   linked   number, shard, patient         the Patients that ever shared a person with the one ordered for
--   wanted   orderable, asked               the items it requires, and their LOINC codes as loinc:<code>
--   dated    flat result rows, every version, with made: the effective time, else the issued one; asked: the item, or loinc:<code>
--            where the local code is not mapped to any
--   undated  those with neither time
SELECT p.number AS placed_number, r.*
FROM linked l
JOIN placed p ON p.number = l.number
JOIN dated r ON r.shard = l.shard AND r.patient = l.patient AND r.made >= p.first AND r.made <= p.at
JOIN wanted w ON w.orderable = p.orderable AND w.asked = r.asked
UNION ALL
SELECT p.number AS placed_number, r.*
FROM linked l
JOIN placed p ON p.number = l.number
JOIN undated r ON r.shard = l.shard AND r.patient = l.patient
JOIN wanted w ON w.orderable = p.orderable AND w.asked = r.asked
