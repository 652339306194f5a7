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
),
ranks AS (
  SELECT e.run AS run, e.job AS job, e.job_or_run AS job_or_run, e.rank AS rank, e.world_size AS world_size, e.machine AS machine,
    e.workload AS workload, e.hardware AS hardware, e.version AS version, e.labels AS labels, min(e.start) AS start,
    count(*) AS epochs, sum(e.steps) AS steps, sum(e.samples) AS samples, sum(e.duration_s) AS duration_s,
    sum(coalesce(e.phases_s['backward'], 0)) AS backward_s, sum(coalesce(e.phases_s['after backward'], 0)) AS after_backward_s,
    sum(coalesce(e.phases_s['optimizer'], 0)) AS optimizer_s, sum(coalesce(e.phases_s['forward'], 0)) AS forward_s
  FROM fleet_epoch AS e INNER JOIN shared AS s ON e.job_or_run = s.job_or_run AND e.part = s.part
  WHERE e.stage = 'train' AND e.steps > 0 AND e.duration_s > 0
  GROUP BY e.run, e.job, e.job_or_run, e.rank, e.world_size, e.machine, e.workload, e.hardware, e.version, e.labels
),
meetings AS (
  SELECT job_or_run,
    CASE WHEN count(*) < 2 THEN ''
      WHEN medianExact(backward_s) - min(backward_s) >= 0.01 * medianExact(duration_s) THEN 'backward'
      WHEN medianExact(after_backward_s) - min(after_backward_s) >= 0.01 * medianExact(duration_s) THEN 'after backward'
      WHEN medianExact(optimizer_s) - min(optimizer_s) >= 0.01 * medianExact(duration_s) THEN 'optimizer'
      WHEN medianExact(forward_s) - min(forward_s) >= 0.01 * medianExact(duration_s) THEN 'forward'
      ELSE '' END AS phase
  FROM ranks GROUP BY job_or_run
),
met AS (
  SELECT r.*, m.phase AS meeting,
    CASE m.phase WHEN 'backward' THEN r.backward_s WHEN 'after backward' THEN r.after_backward_s
      WHEN 'optimizer' THEN r.optimizer_s WHEN 'forward' THEN r.forward_s ELSE 0 END AS meeting_s
  FROM ranks AS r INNER JOIN meetings AS m ON r.job_or_run = m.job_or_run
)
SELECT run, job, job_or_run, rank, world_size, machine, labels, workload, hardware, version, start, epochs, steps, samples,
  duration_s, meeting, meeting_s, duration_s - meeting_s AS own_s
FROM met
