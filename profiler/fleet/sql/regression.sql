-- Whether the new version is slower than the old one, as the ratio of the times of a sample.
-- Versions are compared within each workload on each hardware class with each number of ranks that ran with both: a cell. The unit
-- is the job. Jobs whose workload is not known are left out: two versions that train different things say nothing.
-- A cell gets a verdict from three jobs of each version on, and its interval is of its own jobs if these differ more than all do.
-- A job is the median of its epochs' time per sample, on a logarithmic scale, without the first epoch, which starts things up:
-- jobs of one epoch count only in cells that have no others. The spread of jobs is that within all cells together.
-- "all" joins the cells, each with a weight by its jobs. Its interval is of how jobs differ, or of how cells do if that is more.
-- The interval of "all" holds in 98 of 100 cases; those of the cells hold all at once in 995 of 1,000 (Bonferroni).
-- Quantiles: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23 (normal) and 26.7.5 (Student's t).
WITH epochs AS (
  SELECT workload, hardware, coalesce(world_size, 1) AS ranks, job_or_run, version /* BY */ AS which,
    ln(duration_s / coalesce(samples, CAST(steps AS BIGINT))) AS x, CASE WHEN epoch = 0 THEN 0 ELSE 1 END AS is_later
  FROM fleet_epoch
  WHERE stage = 'train' AND workload <> '' AND coalesce(samples, CAST(steps AS BIGINT)) > 0 AND duration_s > 0
    AND version /* BY */ IN ('OLD' /* OLD */, 'NEW' /* NEW */) AND start >= CAST('1970-01-01' /* SINCE */ AS DATE)
),
later AS (
  SELECT workload, hardware, ranks FROM epochs WHERE is_later = 1 GROUP BY workload, hardware, ranks HAVING count(DISTINCT which) = 2
),
jobs AS (
  SELECT e.workload AS workload, e.hardware AS hardware, e.ranks AS ranks, e.job_or_run AS job_or_run, e.which AS which,
    (medianExact(e.x) - medianExact(-e.x)) / 2 AS x
  FROM epochs AS e
  WHERE e.is_later = 1 OR (e.workload, e.hardware, e.ranks) NOT IN (SELECT workload, hardware, ranks FROM later)
  GROUP BY e.workload, e.hardware, e.ranks, e.job_or_run, e.which
),
sides AS (
  SELECT workload, hardware, ranks, which, count(*) AS n, avg(x) AS mean,
    CASE WHEN count(*) > 1 THEN var_samp(x) * (count(*) - 1) ELSE 0 END AS squares
  FROM jobs GROUP BY workload, hardware, ranks, which
),
cells AS (
  SELECT a.workload AS workload, a.hardware AS hardware, a.ranks AS ranks, a.n AS jobs_old, b.n AS jobs_new,
    b.mean - a.mean AS shift, a.squares + b.squares AS squares, 1.0 * a.n * b.n / (a.n + b.n) AS weight
  FROM sides AS a INNER JOIN sides AS b ON a.workload = b.workload AND a.hardware = b.hardware AND a.ranks = b.ranks
  WHERE a.which = 'OLD' /* OLD */ AND b.which = 'NEW' /* NEW */
),
pooled AS (
  SELECT count(*) AS cells, sum(c.jobs_old) AS jobs_old, sum(c.jobs_new) AS jobs_new, sum(c.weight) AS weights,
    sum(c.weight * c.shift) / sum(c.weight) AS shift, sum(c.jobs_old + c.jobs_new) - 2 * count(*) AS freedom,
    sum(c.squares) / nullif(sum(c.jobs_old + c.jobs_new) - 2 * count(*), 0) AS variance
  FROM cells AS c
),
spread AS (
  SELECT sum(c.weight * (c.shift - p.shift) * (c.shift - p.shift)) AS squares FROM cells AS c CROSS JOIN pooled AS p
),
answers AS (
  SELECT 'all' AS scope, '' AS workload, '' AS hardware, NULL AS ranks, p.jobs_old AS jobs_old, p.jobs_new AS jobs_new,
    p.shift AS shift, greatest(sqrt(p.variance / p.weights),
      CASE WHEN p.cells > 1 THEN sqrt(s.squares / ((p.cells - 1) * p.weights)) ELSE 0 END) AS error,
    1.0 * p.freedom AS freedom, 0.01 AS tail
  FROM pooled AS p CROSS JOIN spread AS s WHERE p.cells > 0
  UNION ALL
  SELECT 'cell' AS scope, c.workload AS workload, c.hardware AS hardware, c.ranks AS ranks, c.jobs_old AS jobs_old, c.jobs_new AS jobs_new,
    c.shift AS shift, sqrt(greatest(p.variance, coalesce(c.squares / nullif(c.jobs_old + c.jobs_new - 2, 0), 0)) / c.weight) AS error,
    1.0 * p.freedom AS freedom, 0.0025 / p.cells AS tail
  FROM cells AS c CROSS JOIN pooled AS p
),
normal AS (
  SELECT *, sqrt(-2 * ln(tail))
    - (2.515517 + 0.802853 * sqrt(-2 * ln(tail)) - 0.020656 * ln(tail))
    / (1 + 1.432788 * sqrt(-2 * ln(tail)) - 0.378538 * ln(tail) + 0.001308 * pow(-2 * ln(tail), 1.5)) AS z
  FROM answers
),
bounds AS (
  SELECT *, error * (z + (pow(z, 3) + z) / (4 * freedom) + (5 * pow(z, 5) + 16 * pow(z, 3) + 3 * z) / (96 * freedom * freedom)
    + (3 * pow(z, 7) + 19 * pow(z, 5) + 17 * pow(z, 3) - 15 * z) / (384 * pow(freedom, 3))) AS reach
  FROM normal WHERE freedom > 0
)
SELECT scope, workload, hardware, ranks, jobs_old, jobs_new, exp(shift) AS ratio,
  CASE WHEN freedom >= 3 THEN exp(shift - reach) END AS low, CASE WHEN freedom >= 3 THEN exp(shift + reach) END AS high,
  CASE WHEN freedom < 3 OR (scope = 'cell' AND least(jobs_old, jobs_new) < 3) THEN 'too few jobs'
    WHEN shift - reach > 0 THEN 'slower' WHEN shift + reach < 0 THEN 'faster'
    ELSE 'no difference found' END AS verdict
FROM bounds ORDER BY scope, ratio DESC, workload, hardware, ranks
