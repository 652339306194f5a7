-- Ranks that hold their job back, the most waiting first.
-- Ranks that exchange gradients go in step: a slow one has more time of its own, and less where the others wait for it.
-- A rank is named if its own time, or all of its time where ranks do not wait, is more than that of the others by at least
-- 5 % of a step, and by five times what the others differ. lost_s: how long all ranks together waited.
WITH per_step AS (
  SELECT job, run, rank, machine, workload, meeting, steps, epochs, own_s / steps AS own, meeting_s / steps AS met,
    duration_s / steps AS whole
  FROM fleet_rank WHERE job <> '' AND rank IS NOT NULL AND start >= CAST('1970-01-01' /* SINCE */ AS DATE)
),
usual AS (
  SELECT s.job AS job, count(*) AS ranks, -medianExact(-s.own) AS own, -medianExact(-s.whole) AS whole, min(s.met) AS met,
    sum(s.met) AS all_met
  FROM per_step AS s GROUP BY s.job HAVING count(*) > 1
),
differ AS (
  SELECT p.job AS job, -medianExact(-abs(p.own - u.own)) AS own, -medianExact(-abs(p.whole - u.whole)) AS whole
  FROM per_step AS p INNER JOIN usual AS u ON p.job = u.job GROUP BY p.job
),
behind AS (
  SELECT p.job AS job, p.workload AS workload, p.rank AS rank, u.ranks AS ranks, p.machine AS machine, p.epochs AS epochs,
    p.steps AS steps, p.meeting AS meeting, u.whole AS whole, (u.all_met - u.ranks * u.met) * p.steps AS lost_s,
    CASE WHEN p.own - u.own >= 5 * d.own THEN p.own / u.own ELSE p.whole / u.whole END AS slower,
    greatest(CASE WHEN p.own - u.own >= 5 * d.own THEN p.own - u.own ELSE 0 END,
      CASE WHEN p.whole - u.whole >= 5 * d.whole THEN p.whole - u.whole ELSE 0 END) AS behind
  FROM per_step AS p INNER JOIN usual AS u ON p.job = u.job INNER JOIN differ AS d ON p.job = d.job
)
SELECT job, workload, rank, ranks, machine, epochs, slower, behind * steps AS behind_s, behind / whole AS behind_share,
  meeting AS waited_in, CASE WHEN meeting = '' THEN 0 ELSE lost_s END AS lost_s
FROM behind WHERE behind >= 0.05 * whole AND slower >= 1.05
ORDER BY lost_s DESC, behind_s DESC, job, rank
