-- The training of each job in each week, which an export is made of, and which nobody else sees.
-- d0, d1, ... are the columns that make a cell; unit is what a cell counts.
SELECT week, d0 /* CELL */, unit, job_or_run, sum(waited_s) / sum(CASE WHEN waited_s IS NOT NULL THEN spent_s END) AS waiting,
  sum(spent_s) / nullif(sum(seen), 0) AS s_per_sample, sum(joules) / nullif(sum(metered), 0) AS j_per_sample
FROM (
  SELECT CAST(date_trunc('week', start) AS DATE) AS week, hardware AS d0 /* COLUMNS */, job_or_run AS unit /* UNIT */,
    job_or_run, duration_s AS spent_s, coalesce(samples, CAST(steps AS BIGINT)) AS seen, energy_j AS joules,
    CASE WHEN energy_j IS NOT NULL THEN samples END AS metered,
    CASE WHEN length(mapKeys(ledger_s)) > 0
      THEN coalesce(ledger_s['data_wait'], 0) + coalesce(ledger_s['loader_start'], 0) END AS waited_s
  FROM fleet_epoch WHERE stage = 'train' AND duration_s > 0
) AS parts
GROUP BY week, d0 /* CELL */, unit, job_or_run
