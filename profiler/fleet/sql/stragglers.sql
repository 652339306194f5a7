-- Ranks that hold their job back, the most waiting first.
-- Ranks that exchange gradients go in step: a slow one has more time of its own, and less where the others wait for it.
-- A rank is named if its own time is more than that of the others by at least 5 % of a step (10 % in jobs of two or three ranks),
-- and by five times what the others differ. Where ten jobs or more have four to seven ranks, or at least eight, it is known how much
-- ranks of such jobs differ as a rule. Then eight times that is asked for as well; and with eight ranks, 2 % of a step are enough.
-- In jobs where no rank is named, all of its time is compared: they may not wait for each other. A rank that is slow in the very
-- phase in which the others wait cannot be seen: all take equally long there. Each attempt of a job that began anew is judged alone,
-- from its second epoch on: one says nothing of the rank.
-- lost_s: how long all ranks together waited.
WITH per_epoch AS (
  SELECT job, attempt, rank, max(machine) AS place, max(workload) AS workload, max(meeting) AS meeting, count(*) AS epochs,
    sum(own_s) / count(*) AS own, sum(meeting_s) / count(*) AS met, sum(duration_s) / count(*) AS whole
  FROM fleet_rank WHERE job <> '' AND rank IS NOT NULL AND start >= CAST('1970-01-01' /* SINCE */ AS DATE) GROUP BY job, attempt, rank
),
usual AS (
  SELECT s.job AS job, s.attempt AS attempt, count(*) AS ranks, CASE WHEN count(*) < 4 THEN 2 WHEN count(*) < 8 THEN 4 ELSE 8 END AS size,
    -medianExact(-s.own) AS own, -medianExact(-s.whole) AS whole, min(s.met) AS met, sum(s.met) AS all_met
  FROM per_epoch AS s GROUP BY s.job, s.attempt HAVING count(*) > 1 AND max(s.epochs) > 1
),
differ AS (
  SELECT p.job AS job, p.attempt AS attempt, u.size AS size, -medianExact(-abs(p.own - u.own)) AS own,
    -medianExact(-abs(p.whole - u.whole)) AS whole, medianExact(abs(p.own - u.own)) / u.whole AS share
  FROM per_epoch AS p INNER JOIN usual AS u ON p.job = u.job AND p.attempt = u.attempt GROUP BY p.job, p.attempt, u.size, u.whole
),
fleet AS (
  SELECT size, CASE WHEN size = 2 THEN 0.1 WHEN count(DISTINCT job) < 10 THEN 0.05
    ELSE greatest(CASE WHEN size = 4 THEN 0.05 ELSE 0.02 END, 8 * -medianExact(-share)) END AS least
  FROM differ GROUP BY size
),
excess AS (
  SELECT p.job AS job, p.attempt AS attempt, p.workload AS workload, p.rank AS rank, u.ranks AS ranks, p.place AS machine,
    p.epochs AS epochs, p.meeting AS meeting, u.whole AS usual, (u.all_met - u.ranks * u.met) * p.epochs AS lost_s,
    f.least * u.whole AS least_own, greatest(f.least, CASE WHEN u.ranks < 4 THEN 0.1 ELSE 0.05 END) * u.whole AS least_whole,
    p.own / u.own AS own_ratio, p.whole / u.whole AS whole_ratio,
    CASE WHEN p.own - u.own >= 5 * d.own THEN p.own - u.own ELSE 0 END AS own,
    CASE WHEN p.whole - u.whole >= 5 * d.whole THEN p.whole - u.whole ELSE 0 END AS whole
  FROM per_epoch AS p INNER JOIN usual AS u ON p.job = u.job AND p.attempt = u.attempt
    INNER JOIN differ AS d ON p.job = d.job AND p.attempt = d.attempt INNER JOIN fleet AS f ON u.size = f.size
),
judged AS (
  SELECT *, max(CASE WHEN own >= least_own THEN 1 ELSE 0 END) OVER (PARTITION BY job, attempt) AS in_step FROM excess
),
named AS (
  SELECT job, workload, rank, ranks, machine, epochs, usual, CASE WHEN in_step = 1 THEN own_ratio ELSE whole_ratio END AS ratio,
    CASE WHEN in_step = 1 THEN own ELSE whole END AS behind, CASE WHEN in_step = 1 THEN meeting ELSE '' END AS met_in,
    CASE WHEN in_step = 1 AND meeting <> '' THEN lost_s ELSE 0 END AS lost
  FROM judged WHERE CASE WHEN in_step = 1 THEN own >= least_own ELSE whole >= least_whole END
)
SELECT job, max(n.workload) AS workload, rank, max(n.ranks) AS ranks, max(n.machine) AS machine, CAST(sum(n.epochs) AS BIGINT) AS epochs,
  sum(n.ratio * n.epochs) / sum(n.epochs) AS slower, sum(n.behind * n.epochs) AS behind_s,
  sum(n.behind * n.epochs) / sum(n.usual * n.epochs) AS behind_share, max(n.met_in) AS waited_in, sum(n.lost) AS lost_s
FROM named AS n GROUP BY job, rank ORDER BY lost_s DESC, behind_s DESC, job, rank
