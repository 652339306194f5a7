-- Ranks that hold their job back, the most waiting first.
-- Ranks that exchange gradients go in step: a slow one has more time of its own, and less where the others wait for it.
-- A rank is named if its own time is more than that of the others by at least 5 % of a step (10 % in jobs of two or three ranks),
-- and by five times what the others differ. In jobs where no rank is, all of its time is compared: they may not wait for each
-- other. A rank that is slow in the very phase in which the others wait cannot be seen: all take equally long there.
-- lost_s: how long all ranks together waited.
WITH per_epoch AS (
  SELECT job, run, rank, machine, workload, meeting, epochs, own_s / epochs AS own, meeting_s / epochs AS met,
    duration_s / epochs AS whole
  FROM fleet_rank WHERE job <> '' AND rank IS NOT NULL AND start >= CAST('1970-01-01' /* SINCE */ AS DATE)
),
usual AS (
  SELECT s.job AS job, count(*) AS ranks, -medianExact(-s.own) AS own, -medianExact(-s.whole) AS whole, min(s.met) AS met,
    sum(s.met) AS all_met
  FROM per_epoch AS s GROUP BY s.job HAVING count(*) > 1
),
differ AS (
  SELECT p.job AS job, -medianExact(-abs(p.own - u.own)) AS own, -medianExact(-abs(p.whole - u.whole)) AS whole
  FROM per_epoch AS p INNER JOIN usual AS u ON p.job = u.job GROUP BY p.job
),
excess AS (
  SELECT p.job AS job, p.workload AS workload, p.rank AS rank, u.ranks AS ranks, p.machine AS machine, p.epochs AS epochs,
    p.meeting AS meeting, u.whole AS usual, (u.all_met - u.ranks * u.met) * p.epochs AS lost_s,
    CASE WHEN u.ranks < 4 THEN 0.1 ELSE 0.05 END * u.whole AS least, p.own / u.own AS own_ratio, p.whole / u.whole AS whole_ratio,
    CASE WHEN p.own - u.own >= 5 * d.own THEN p.own - u.own ELSE 0 END AS own,
    CASE WHEN p.whole - u.whole >= 5 * d.whole THEN p.whole - u.whole ELSE 0 END AS whole
  FROM per_epoch AS p INNER JOIN usual AS u ON p.job = u.job INNER JOIN differ AS d ON p.job = d.job
),
in_step AS (
  SELECT job FROM excess WHERE own >= least GROUP BY job
),
answers AS (
  SELECT job, workload, rank, ranks, machine, epochs, own_ratio AS slower, own * epochs AS behind_s, own / usual AS behind_share,
    meeting AS waited_in, CASE WHEN meeting = '' THEN 0 ELSE lost_s END AS lost_s
  FROM excess WHERE own >= least
  UNION ALL
  SELECT job, workload, rank, ranks, machine, epochs, whole_ratio AS slower, whole * epochs AS behind_s, whole / usual AS behind_share,
    '' AS waited_in, 0 AS lost_s
  FROM excess WHERE whole >= least AND job NOT IN (SELECT job FROM in_step)
)
SELECT * FROM answers ORDER BY lost_s DESC, behind_s DESC, job, rank
