-- Machines on which jobs take longer than on the others.
-- Within a job on several machines, the own time of each is compared with the mean of the others. Jobs on one machine are compared with those of the same
-- workload, hardware class and number of ranks, if their workload is known. A machine is named by the label `node`. Without
-- it only its place in its jobs is known: that a job's first machine is slow in all jobs says something, but of no machine.
-- Named are those with at least three jobs, at least 3 % slower, whose interval is above the fleet's middle.
-- The intervals hold in 99 of 100 cases, all at once (Bonferroni), and are of how jobs differ on one and the same machine
-- (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23 and 26.7.5).
WITH ranks AS (
  SELECT machine /* BY */ AS place, job_or_run, workload, hardware, coalesce(world_size, 1) AS ranks,
    ln(sum(own_s) / sum(coalesce(samples, CAST(steps AS BIGINT)))) AS own,
    ln(sum(duration_s) / sum(coalesce(samples, CAST(steps AS BIGINT)))) AS whole
  FROM fleet_rank
  WHERE machine /* BY */ <> '' AND own_s > 0 AND coalesce(samples, CAST(steps AS BIGINT)) > 0 AND start >= CAST('1970-01-01' /* SINCE */ AS DATE)
  GROUP BY place, job_or_run, rank, workload, hardware, ranks
),
on_several AS (
  SELECT job_or_run FROM ranks GROUP BY job_or_run HAVING count(DISTINCT place) > 1
),
compared AS (
  SELECT place, job_or_run, concat('job ', job_or_run) AS peers, 1 AS in_job, avg(own) AS x
  FROM ranks WHERE job_or_run IN (SELECT job_or_run FROM on_several) GROUP BY place, job_or_run
  UNION ALL
  SELECT place, job_or_run, concat(workload, ' on ', hardware, ' with ', max(ranks)) AS peers, 0 AS in_job, avg(whole) AS x
  FROM ranks WHERE workload <> '' AND job_or_run NOT IN (SELECT job_or_run FROM on_several) GROUP BY place, job_or_run, workload, hardware
),
peers AS (
  SELECT peers, (medianExact(x) - medianExact(-x)) / 2 AS usual, sum(x) AS whole, count(*) AS n FROM compared GROUP BY peers HAVING count(DISTINCT place) > 1
),
shifts AS (
  SELECT c.place AS place, c.job_or_run AS job_or_run, 
    CASE WHEN c.in_job = 1 THEN c.x - (p.whole - c.x) / (p.n - 1) ELSE c.x - p.usual END AS shift
  FROM compared AS c INNER JOIN peers AS p ON c.peers = p.peers
),
nodes AS (
  SELECT place, count(DISTINCT job_or_run) AS jobs, count(*) AS n, avg(shift) AS mean,
    CASE WHEN count(*) > 1 THEN var_samp(shift) * (count(*) - 1) ELSE 0 END AS squares
  FROM shifts GROUP BY place
),
fleet AS (
  SELECT count(*) AS nodes, -medianExact(-mean) AS usual, sum(squares) / nullif(sum(n) - count(*), 0) AS variance,
    sum(n) - count(*) AS freedom, 0.005 / count(*) AS tail
  FROM nodes
),
normal AS (
  SELECT n.place AS place, n.jobs AS jobs, f.nodes AS nodes, n.mean - f.usual AS shift, sqrt(f.variance / n.n) AS error,
    1.0 * f.freedom AS freedom, sqrt(-2 * ln(f.tail)) - (2.515517 + 0.802853 * sqrt(-2 * ln(f.tail)) - 0.020656 * ln(f.tail))
    / (1 + 1.432788 * sqrt(-2 * ln(f.tail)) - 0.378538 * ln(f.tail) + 0.001308 * pow(-2 * ln(f.tail), 1.5)) AS z
  FROM nodes AS n CROSS JOIN fleet AS f WHERE f.freedom > 2
),
bounds AS (
  SELECT place, jobs, nodes, shift, error * (z + (pow(z, 3) + z) / (4 * freedom)
    + (5 * pow(z, 5) + 16 * pow(z, 3) + 3 * z) / (96 * freedom * freedom)
    + (3 * pow(z, 7) + 19 * pow(z, 5) + 17 * pow(z, 3) - 15 * z) / (384 * pow(freedom, 3))) AS reach
  FROM normal
)
SELECT place AS node, jobs, nodes AS of_nodes, exp(shift) AS slower, exp(shift - reach) AS low, exp(shift + reach) AS high
FROM bounds WHERE jobs >= 3 AND shift - reach > 0 AND exp(shift) >= 1.03
ORDER BY slower DESC, place
