-- Ranks that hold their job back, the most waiting first.
-- Ranks that exchange gradients go in step: a slow one has more time of its own, and less where the others wait for it.
-- A rank is named if its own time is more than that of the others by at least 5 % of a step (10 % in jobs of two or three ranks),
-- and by five times what the others differ. Where ten jobs or more have at least eight ranks, it is known how much ranks differ as
-- a rule: there, eight times that is asked for instead, and 2 % of a step. In jobs where no rank is named, all of its time is
-- compared: they may not wait for each other. A rank that is slow in the very phase in which the others wait cannot be seen: all
-- take equally long there. lost_s: how long all ranks together waited.
WITH per_epoch AS (
  SELECT job, rank, max(machine) AS place, max(workload) AS workload, max(meeting) AS meeting, count(*) AS epochs, sum(own_s) / count(*) AS own,
    sum(meeting_s) / count(*) AS met, sum(duration_s) / count(*) AS whole
  FROM fleet_rank WHERE job <> '' AND rank IS NOT NULL AND start >= CAST('1970-01-01' /* SINCE */ AS DATE) GROUP BY job, rank
),
usual AS (
  SELECT s.job AS job, count(*) AS ranks, -medianExact(-s.own) AS own, -medianExact(-s.whole) AS whole, min(s.met) AS met,
    sum(s.met) AS all_met
  FROM per_epoch AS s GROUP BY s.job HAVING count(*) > 1
),
differ AS (
  SELECT p.job AS job, u.ranks AS ranks, -medianExact(-abs(p.own - u.own)) AS own, -medianExact(-abs(p.whole - u.whole)) AS whole,
    -medianExact(-abs(p.own - u.own)) / u.whole AS share
  FROM per_epoch AS p INNER JOIN usual AS u ON p.job = u.job GROUP BY p.job, u.ranks, u.whole
),
fleet AS (
  SELECT CASE WHEN count(*) < 10 THEN 0.05 ELSE greatest(0.02, 8 * -medianExact(-share)) END AS least_of_many
  FROM differ WHERE ranks >= 8
),
excess AS (
  SELECT p.job AS job, p.workload AS workload, p.rank AS rank, u.ranks AS ranks, p.place AS machine, p.epochs AS epochs,
    p.meeting AS meeting, u.whole AS usual, (u.all_met - u.ranks * u.met) * p.epochs AS lost_s,
    CASE WHEN u.ranks < 4 THEN 0.1 WHEN u.ranks < 8 THEN 0.05 ELSE f.least_of_many END * u.whole AS least_own,
    CASE WHEN u.ranks < 4 THEN 0.1 ELSE 0.05 END * u.whole AS least_whole,
    p.own / u.own AS own_ratio, p.whole / u.whole AS whole_ratio,
    CASE WHEN p.own - u.own >= 5 * d.own THEN p.own - u.own ELSE 0 END AS own,
    CASE WHEN p.whole - u.whole >= 5 * d.whole THEN p.whole - u.whole ELSE 0 END AS whole
  FROM per_epoch AS p INNER JOIN usual AS u ON p.job = u.job INNER JOIN differ AS d ON p.job = d.job CROSS JOIN fleet AS f
),
judged AS (
  SELECT *, max(CASE WHEN own >= least_own THEN 1 ELSE 0 END) OVER (PARTITION BY job) AS in_step FROM excess
)
SELECT job, workload, rank, ranks, machine, epochs, CASE WHEN in_step = 1 THEN own_ratio ELSE whole_ratio END AS slower,
  CASE WHEN in_step = 1 THEN own ELSE whole END * epochs AS behind_s,
  CASE WHEN in_step = 1 THEN own ELSE whole END / usual AS behind_share,
  CASE WHEN in_step = 1 THEN meeting ELSE '' END AS waited_in,
  CASE WHEN in_step = 1 AND meeting <> '' THEN lost_s ELSE 0 END AS lost_s
FROM judged WHERE CASE WHEN in_step = 1 THEN own >= least_own ELSE whole >= least_whole END
ORDER BY lost_s DESC, behind_s DESC, job, rank
