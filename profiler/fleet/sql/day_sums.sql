-- The sums of days, with the buckets of steps at the one scale. ClickHouse alone: they are kept when the rows are dropped.
-- made: when these sums were made. of_day: the time of the whole day's rows, s.
SELECT *, sum(duration_s) OVER (PARTITION BY day) AS of_day
FROM (
  SELECT toDate(start) AS day, now64(6, 'UTC') AS made, gpu, workload, stage, count() AS rows, uniqExact(run) AS runs,
    sum(duration_s) AS duration_s, sum(steps) AS steps, sum(samples) AS samples, sum(energy_j) AS energy_j,
    sumMap(phases_s) AS phases_s, sum(step_zeros) AS step_zeros,
    sumMap(arrayMap((count, place) -> toInt32(step_offset + place - 1), step_counts, arrayEnumerate(step_counts)),
      arrayMap(count -> toUInt64(count), step_counts)) AS step_buckets
  FROM fleet_epoch WHERE toDate(start) IN ('1970-01-01' /* DAYS */) GROUP BY day, gpu, workload, stage
)
