-- fleet_rank: one row for each run's training, of all its epochs; a rank of a distributed job is a run of its own.
-- meeting: the phase in which the job's ranks wait for each other; empty where none of them waits.
-- It is the first of these phases in which most ranks take at least 1 % of an epoch longer than the rank that waits least.
-- own_s: the time without the meeting phase, so what the rank itself took.
-- Ranks are compared over the epochs that all of them have: one that died early is not held against the others.
WITH told AS (
  SELECT job_or_run, part, count(DISTINCT run) AS ranks FROM fleet_epoch
  WHERE stage = 'train' AND steps > 0 AND duration_s > 0 GROUP BY job_or_run, part
),
shared AS (
  SELECT t.job_or_run AS job_or_run, t.part AS part
  FROM told AS t INNER JOIN (SELECT job_or_run, max(ranks) AS most FROM told GROUP BY job_or_run) AS m ON t.job_or_run = m.job_or_run
  WHERE t.ranks = m.most
)
SELECT
  r.run AS run, r.job AS job, r.job_or_run AS job_or_run, r.rank AS rank, r.world_size AS world_size, r.machine AS machine,
  r.labels AS labels, r.workload AS workload, r.hardware AS hardware, r.version AS version, r.start AS start,
  r.epochs AS epochs, r.steps AS steps, r.samples AS samples, r.duration_s AS duration_s, m.phase AS meeting,
  CASE m.phase WHEN 'backward' THEN r.backward_s WHEN 'after backward' THEN r.after_backward_s
    WHEN 'optimizer' THEN r.optimizer_s WHEN 'forward' THEN r.forward_s ELSE 0 END AS meeting_s,
  r.duration_s - CASE m.phase WHEN 'backward' THEN r.backward_s WHEN 'after backward' THEN r.after_backward_s
    WHEN 'optimizer' THEN r.optimizer_s WHEN 'forward' THEN r.forward_s ELSE 0 END AS own_s
FROM (
  SELECT e.run AS run, e.job AS job, e.job_or_run AS job_or_run, e.rank AS rank, e.world_size AS world_size, e.machine AS machine,
    e.workload AS workload, e.hardware AS hardware, e.version AS version, e.labels AS labels, min(e.start) AS start,
    count(*) AS epochs, sum(e.steps) AS steps, sum(e.samples) AS samples, sum(e.duration_s) AS duration_s,
    sum(coalesce(e.phases_s['backward'], 0)) AS backward_s, sum(coalesce(e.phases_s['after backward'], 0)) AS after_backward_s,
    sum(coalesce(e.phases_s['optimizer'], 0)) AS optimizer_s, sum(coalesce(e.phases_s['forward'], 0)) AS forward_s
  FROM fleet_epoch AS e INNER JOIN shared AS s ON e.job_or_run = s.job_or_run AND e.part = s.part
  WHERE e.stage = 'train' AND e.steps > 0 AND e.duration_s > 0
  GROUP BY e.run, e.job, e.job_or_run, e.rank, e.world_size, e.machine, e.workload, e.hardware, e.version, e.labels
) AS r
INNER JOIN (
  SELECT job_or_run,
    CASE WHEN count(*) < 2 THEN ''
      WHEN medianExact(backward) - min(backward) >= 0.01 * medianExact(whole) THEN 'backward'
      WHEN medianExact(after_backward) - min(after_backward) >= 0.01 * medianExact(whole) THEN 'after backward'
      WHEN medianExact(optimizer) - min(optimizer) >= 0.01 * medianExact(whole) THEN 'optimizer'
      WHEN medianExact(forward) - min(forward) >= 0.01 * medianExact(whole) THEN 'forward'
      ELSE '' END AS phase
  FROM (
    SELECT e.job_or_run AS job_or_run, e.run AS run, sum(e.duration_s) AS whole,
      sum(coalesce(e.phases_s['backward'], 0)) AS backward,
      sum(coalesce(e.phases_s['after backward'], 0)) AS after_backward,
      sum(coalesce(e.phases_s['optimizer'], 0)) AS optimizer,
      sum(coalesce(e.phases_s['forward'], 0)) AS forward
    FROM fleet_epoch AS e INNER JOIN shared AS s ON e.job_or_run = s.job_or_run AND e.part = s.part
    WHERE e.stage = 'train' AND e.steps > 0 AND e.duration_s > 0 GROUP BY e.job_or_run, e.run
  ) AS totals GROUP BY job_or_run
) AS m ON r.job_or_run = m.job_or_run
