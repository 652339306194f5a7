-- How long a sample takes, week by week, for each workload, hardware class and version.
-- Each job counts once a week, with the median of its epochs; the answer is the median of the jobs.
-- Where a batch's size is not known, a step counts as a sample. Ranks of one job are beside each other: their time adds up.
SELECT workload, hardware, which AS version, week, count(*) AS jobs, CAST(sum(seen) AS BIGINT) AS samples,
  (medianExact(per_sample) - medianExact(-per_sample)) / 2 AS s_per_sample
FROM (
  SELECT workload, hardware, version /* BY */ AS which, CAST(date_trunc('week', start) AS DATE) AS week, job_or_run,
    sum(coalesce(samples, CAST(steps AS BIGINT))) AS seen, (medianExact(duration_s / coalesce(samples, CAST(steps AS BIGINT)))
      - medianExact(-duration_s / coalesce(samples, CAST(steps AS BIGINT)))) / 2 AS per_sample
  FROM fleet_epoch
  WHERE stage = 'train' AND coalesce(samples, CAST(steps AS BIGINT)) > 0 AND duration_s > 0 AND start >= CAST('1970-01-01' /* SINCE */ AS DATE)
  GROUP BY workload, hardware, which, week, job_or_run
) AS jobs
GROUP BY workload, hardware, which, week
ORDER BY workload, hardware, version, week
