-- fleet_rank: one row for each rank in each epoch of its job's training; a process alone is a job of one rank.
-- attempt: 1, 2, ... where a job began anew under the same id: as many runs as one of its ranks had begun by then (within 5 s).
-- Epochs that not all ranks of the attempt have are left out: one that died early is not held against the others.
-- meeting: the phase in which the job's ranks wait for each other, day by day; empty where none of them waits.
-- It is the first of these phases in which most ranks take at least 1 % of their time longer than the rank that waits least.
-- own_s: the time without the meeting phase, so what the rank itself took.
-- start: when the first of the ranks began the epoch.
WITH trained AS (
  SELECT run, job, job_or_run, rank, world_size, machine, labels, workload, hardware, version, part, start AS began, steps, samples,
    duration_s, coalesce(phases_s['backward'], 0) AS backward_s, coalesce(phases_s['after backward'], 0) AS after_backward_s,
    coalesce(phases_s['optimizer'], 0) AS optimizer_s, coalesce(phases_s['forward'], 0) AS forward_s,
    min(start) OVER (PARTITION BY run) AS run_began
  FROM fleet_epoch WHERE stage = 'train' AND steps > 0 AND duration_s > 0
),
numbered AS (
  SELECT *, CAST(dense_rank() OVER (PARTITION BY job_or_run, rank ORDER BY run_began, run) AS BIGINT) AS of_rank FROM trained
),
attempts AS (
  SELECT *, max(of_rank) OVER (PARTITION BY job_or_run ORDER BY began_s RANGE BETWEEN UNBOUNDED PRECEDING AND 5 FOLLOWING) AS attempt
  FROM (
    SELECT *, date_diff('second', CAST('1970-01-01 00:00:00' AS TIMESTAMP), CAST(run_began AS TIMESTAMP)) AS began_s FROM numbered
  ) AS timed
),
rounds AS (
  SELECT *, count(*) OVER (PARTITION BY job_or_run, attempt, part) AS together,
    min(began) OVER (PARTITION BY job_or_run, attempt, part) AS start
  FROM attempts
),
whole AS (
  SELECT *, max(together) OVER (PARTITION BY job_or_run, attempt) AS most FROM rounds
),
compared AS (
  SELECT *, CAST(start AS DATE) AS day FROM whole WHERE together = most
),
ranks AS (
  SELECT job_or_run, attempt, day, rank, sum(duration_s) AS whole, sum(backward_s) AS backward, sum(after_backward_s) AS after_backward,
    sum(optimizer_s) AS optimizer, sum(forward_s) AS forward
  FROM compared GROUP BY job_or_run, attempt, day, rank
),
meetings AS (
  SELECT job_or_run, attempt, day,
    CASE WHEN count(*) < 2 THEN ''
      WHEN medianExact(backward) - min(backward) >= 0.01 * medianExact(whole) THEN 'backward'
      WHEN medianExact(after_backward) - min(after_backward) >= 0.01 * medianExact(whole) THEN 'after backward'
      WHEN medianExact(optimizer) - min(optimizer) >= 0.01 * medianExact(whole) THEN 'optimizer'
      WHEN medianExact(forward) - min(forward) >= 0.01 * medianExact(whole) THEN 'forward'
      ELSE '' END AS phase
  FROM ranks GROUP BY job_or_run, attempt, day
),
met AS (
  SELECT c.*, m.phase AS meeting,
    CASE m.phase WHEN 'backward' THEN c.backward_s WHEN 'after backward' THEN c.after_backward_s
      WHEN 'optimizer' THEN c.optimizer_s WHEN 'forward' THEN c.forward_s ELSE 0 END AS meeting_s
  FROM compared AS c INNER JOIN meetings AS m ON c.job_or_run = m.job_or_run AND c.attempt = m.attempt AND c.day = m.day
)
SELECT run, job, job_or_run, rank, world_size, machine, labels, workload, hardware, version, start, attempt, part, steps,
  samples, duration_s, meeting, meeting_s, duration_s - meeting_s AS own_s
FROM met
