-- How many runs wait for data, and how much: their share of waiting in training, in steps of 5 %.
-- A rank of a job is a run of its own. Waiting is that of the ledger: also for workers of a loader to start.
SELECT floor(share * 20 + 0.00001) / 20 AS share_from, round(floor(share * 20 + 0.00001) / 20 + 0.05, 2) AS share_to,
  count(*) AS runs, count(DISTINCT job_or_run) AS jobs, sum(spent_s) / 3600 AS hours, sum(waited_s) / 3600 AS waited_hours
FROM (
  SELECT run, job_or_run, sum(duration_s) AS spent_s,
    sum(coalesce(ledger_s['data_wait'], 0) + coalesce(ledger_s['loader_start'], 0)) AS waited_s,
    least(sum(coalesce(ledger_s['data_wait'], 0) + coalesce(ledger_s['loader_start'], 0)) / sum(duration_s), 0.9999) AS share
  FROM fleet_epoch
  WHERE stage = 'train' AND duration_s > 0 AND length(mapKeys(ledger_s)) > 0 AND start >= CAST('1970-01-01' /* SINCE */ AS DATE)
  GROUP BY run, job_or_run
) AS runs
GROUP BY share_from ORDER BY share_from
