-- The energy of the GPUs for a sample, by GPU class, stage and workload. Rows without a meter are left out, not guessed.
-- uncertain_share: the part that may belong to a neighbour on the same card.
SELECT e.gpu AS gpu, e.workload AS workload, e.stage AS stage, count(DISTINCT e.job_or_run) AS jobs,
  CAST(sum(e.samples) AS BIGINT) AS samples, sum(e.energy_j) / sum(e.samples) AS j_per_sample, sum(e.energy_j) / 3600000 AS kwh,
  sum(coalesce(e.energy_uncertain_j, 0)) / nullif(sum(e.energy_j), 0) AS uncertain_share
FROM fleet_epoch AS e
WHERE e.energy_j IS NOT NULL AND e.samples IS NOT NULL AND e.start >= CAST('1970-01-01' /* SINCE */ AS DATE)
GROUP BY e.gpu, e.workload, e.stage HAVING sum(e.samples) > 0 ORDER BY gpu, workload, stage
