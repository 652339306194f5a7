-- Where GPU-hours and kWh went, by cause, for each workload or label; useful is computing.
-- A machine without a GPU has hours alone. Time outside stages and phases, and start-up, are in no row of the fleet.
-- ranks: waiting for the slowest rank of the job, beyond what that one waits itself.
WITH waits AS (
  SELECT run, meeting, greatest(met_s - steps * min(met_s / steps) OVER (PARTITION BY job_or_run, attempt, meeting), 0) / spent_s AS share
  FROM (
    SELECT run, job_or_run, attempt, meeting, sum(meeting_s) AS met_s, sum(steps) AS steps, sum(duration_s) AS spent_s
    FROM fleet_rank WHERE meeting <> '' AND start >= CAST('1970-01-01' /* SINCE */ AS DATE) GROUP BY run, job_or_run, attempt, meeting
  ) AS runs
),
pieces AS (
  SELECT run, workload /* BY */ AS which, stage, gpus, duration_s, energy_j, ledger_s, arrayJoin(mapKeys(ledger_s)) AS cause
  FROM fleet_epoch WHERE duration_s > 0 AND start >= CAST('1970-01-01' /* SINCE */ AS DATE)
),
spent AS (
  SELECT which, cause, ledger_s[cause] / 3600 AS hours, gpus * ledger_s[cause] / 3600 AS gpu_hours,
    coalesce(energy_j, 0) * ledger_s[cause] / duration_s / 3600000 AS kwh
  FROM pieces
  UNION ALL
  SELECT p.which AS which,
    CASE WHEN moved.sign > 0 THEN 'ranks' WHEN w.meeting LIKE 'after%' THEN 'host' ELSE 'useful' END AS cause,
    moved.sign * w.share * p.duration_s / 3600 AS hours,
    moved.sign * p.gpus * w.share * p.duration_s / 3600 AS gpu_hours,
    moved.sign * coalesce(p.energy_j, 0) * w.share / 3600000 AS kwh
  FROM (
    SELECT run, workload /* BY */ AS which, gpus, duration_s, energy_j
    FROM fleet_epoch WHERE stage = 'train' AND duration_s > 0 AND start >= CAST('1970-01-01' /* SINCE */ AS DATE)
  ) AS p
  INNER JOIN waits AS w ON p.run = w.run
  CROSS JOIN (SELECT 1 AS sign UNION ALL SELECT -1 AS sign) AS moved
),
sums AS (
  SELECT which, cause, sum(hours) AS hours, sum(gpu_hours) AS gpu_hours, sum(kwh) AS kwh FROM spent GROUP BY which, cause
),
answers AS (
  SELECT which, cause, hours, gpu_hours, kwh, hours / nullif(sum(hours) OVER (PARTITION BY which), 0) AS share,
    sum(CASE WHEN cause = 'useful' THEN 0 ELSE hours END) OVER (PARTITION BY which) AS wasted
  FROM sums
)
SELECT which, cause, hours, gpu_hours, nullif(kwh, 0) AS kwh, share
FROM answers WHERE hours > 0 ORDER BY wasted DESC, which, hours DESC, cause
