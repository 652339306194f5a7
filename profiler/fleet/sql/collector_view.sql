-- fleet_epoch over the tables of the OpenTelemetry Collector's ClickHouse exporter: a row for each run, stage and hour.
-- What arrives is cumulative. Of each series the last point of an hour counts, less the last point before that hour; so the rows
-- of a run add up to its last points, and a point that arrives twice counts once. A counter that falls has begun anew. Points
-- without service.instance.id are of no known run, and left out. An epoch's number is not sent: it is null.
WITH numbers AS (
  SELECT run, stage, hour, metric, is_partial, if(value < before, value, value - before) AS growth
  FROM (
    SELECT *, lagInFrame(value, 1, 0) OVER (
      PARTITION BY run, stage, metric, series ORDER BY hour ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS before
    FROM (
    SELECT ResourceAttributes['service.instance.id'] AS run, Attributes['epochmeter.stage'] AS stage, toStartOfHour(TimeUnix) AS hour,
      MetricName AS metric, Attributes['epochmeter.pass.partial'] = 'true' AS is_partial,
      cityHash64(mapSort(Attributes), StartTimeUnix) AS series, argMax(Value, TimeUnix) AS value
    FROM {tables}_sum
    WHERE startsWith(MetricName, 'epochmeter.') AND AggregationTemporality = 2 AND ResourceAttributes['service.instance.id'] <> ''
    GROUP BY run, stage, hour, metric, is_partial, series
    UNION ALL
    SELECT ResourceAttributes['service.instance.id'] AS run, Attributes['epochmeter.stage'] AS stage, toStartOfHour(TimeUnix) AS hour,
      MetricName AS metric, false AS is_partial, cityHash64(mapSort(Attributes)) AS series, argMax(Value, TimeUnix) AS value
    FROM {tables}_gauge
    WHERE MetricName = 'epochmeter.gpu.energy.uncertain' AND ResourceAttributes['service.instance.id'] <> ''
    GROUP BY run, stage, hour, metric, is_partial, series
    )
  )
),
stages AS (
  SELECT run, stage, hour, sumIf(growth, metric = 'epochmeter.stage.time') AS spent,
    sumIf(growth, metric = 'epochmeter.stage.steps') AS steps, sumIf(growth, metric = 'epochmeter.stage.samples') AS samples,
    sumIf(growth, metric = 'epochmeter.stage.passes') AS passes, sumIf(growth, metric = 'epochmeter.stage.passes' AND is_partial) AS partial,
    sumIf(growth, metric = 'epochmeter.gpu.energy.used') AS joules, countIf(metric = 'epochmeter.gpu.energy.used') AS meters,
    countIf(metric = 'epochmeter.stage.samples') AS counted,
    sumIf(greatest(growth, 0), metric = 'epochmeter.gpu.energy.uncertain') AS uncertain
  FROM numbers GROUP BY run, stage, hour HAVING spent > 0 OR steps > 0 OR joules > 0
),
points AS (
  SELECT ResourceAttributes['service.instance.id'] AS run, Attributes['epochmeter.stage'] AS stage, toStartOfHour(TimeUnix) AS hour,
    MetricName AS metric, Attributes['epochmeter.phase'] AS phase, Attributes['epochmeter.cold'] AS cold,
    cityHash64(mapSort(Attributes), StartTimeUnix) AS series,
    argMax((Sum, Scale, ZeroCount, PositiveOffset, PositiveBucketCounts), TimeUnix) AS point
  FROM {tables}_exponential_histogram
  WHERE AggregationTemporality = 2 AND (MetricName = 'epochmeter.step.duration'
    OR MetricName = 'epochmeter.phase.duration' AND Attributes['epochmeter.phase.level'] = 'top')
  GROUP BY run, stage, hour, metric, phase, cold, series
),
scaled AS (
  SELECT *, least(3, min(point.2) OVER (PARTITION BY run, stage, metric, series)) AS scale FROM points
),
buckets AS (
  SELECT run, stage, hour, metric, phase, cold, series, scale, point.1 AS total, point.3 AS zeros,
    sumMap([toInt32(bitShiftRight(toInt64(point.4) + place - 1, greatest(point.2 - scale, 0)))], [toInt64(amount)]) AS found
  FROM scaled LEFT ARRAY JOIN point.5 AS amount, arrayEnumerate(point.5) AS place
  GROUP BY run, stage, hour, metric, phase, cold, series, scale, total, zeros
),
grown AS (
  SELECT run, stage, hour, metric, phase, cold,
    total - lagInFrame(total, 1, 0) OVER w AS total,
    greatest(toInt64(zeros) - toInt64(lagInFrame(zeros, 1, 0) OVER w), 0) AS zeros,
    mapFilter((bucket, amount) -> amount > 0, mapSubtract(
      CAST((arrayMap(bucket -> toInt32(bitShiftLeft(toInt64(bucket), 3 - scale) + intDiv(bitShiftLeft(1, 3 - scale), 2)), found.1),
        found.2), 'Map(Int32, Int64)'),
      CAST((arrayMap(bucket -> toInt32(bitShiftLeft(toInt64(bucket), 3 - scale) + intDiv(bitShiftLeft(1, 3 - scale), 2)),
        (lagInFrame(found) OVER w).1), (lagInFrame(found) OVER w).2), 'Map(Int32, Int64)'))) AS amounts
  FROM buckets WINDOW w AS (
    PARTITION BY run, stage, metric, series ORDER BY hour ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
),
by_phase AS (
  SELECT run, stage, hour, phase, sum(total) AS spent, toInt32(sumIf(zeros, cold = 'false')) AS zeros,
    sumMapIf(amounts, cold = 'false') AS amounts
  FROM grown WHERE metric = 'epochmeter.phase.duration' GROUP BY run, stage, hour, phase
),
phases AS (
  SELECT run, stage, hour, CAST((groupArray(phase), groupArray(toFloat32(spent))), 'Map(LowCardinality(String), Float32)') AS spent,
    groupArray(phase) AS names, groupArray(zeros) AS zeros,
    groupArray(if(empty(mapKeys(amounts)), 0, arrayMin(mapKeys(amounts)))) AS offsets,
    groupArray(if(empty(mapKeys(amounts)), [], arrayMap(bucket -> toUInt32(amounts[toInt32(bucket)]),
      range(arrayMin(mapKeys(amounts)), arrayMax(mapKeys(amounts)) + 1)))) AS counts
  FROM by_phase GROUP BY run, stage, hour
),
durations AS (
  SELECT run, stage, hour, toUInt64(sum(zeros)) AS zeros, sumMap(amounts) AS amounts
  FROM grown WHERE metric = 'epochmeter.step.duration' AND cold = 'false' GROUP BY run, stage, hour
),
resources AS (
  SELECT ResourceAttributes['service.instance.id'] AS run, argMax(ResourceAttributes, TimeUnix) AS at, min(StartTimeUnix) AS began,
    max(TimeUnix) AS told
  FROM {tables}_sum WHERE startsWith(MetricName, 'epochmeter.') GROUP BY run
)
SELECT s.run AS run, r.at['epochmeter.distributed.job'] AS job, toInt64OrNull(r.at['epochmeter.distributed.rank']) AS rank,
  toInt64OrNull(r.at['epochmeter.distributed.world_size']) AS world_size,
  toInt64OrNull(r.at['epochmeter.distributed.node']) AS node,
  labels[{label}] AS workload,
  mapApply((name, value) -> (replaceOne(name, 'epochmeter.label.', ''), value), mapFilter(
    (name, value) -> startsWith(name, 'epochmeter.label.')
      OR NOT match(name, '^(epochmeter|telemetry|service|process|os)[.]') AND name <> 'host.arch', r.at)) AS labels,
  '' AS state, r.at['epochmeter.app.name'] AS package, r.at['epochmeter.app.version'] AS package_version,
  r.at['epochmeter.runtime.torch'] AS torch, r.at['epochmeter.runtime.cuda'] AS cuda,
  r.at['process.runtime.version'] AS python, r.at['os.type'] AS os, r.at['epochmeter.cpu.family'] AS cpu,
  toInt64OrNull(r.at['epochmeter.cpu.available_cores']) AS cores,
  toInt64OrNull(r.at['epochmeter.memory.total_class_gib']) AS memory_gib, r.at['epochmeter.gpu.model'] AS gpu,
  toUInt64OrZero(r.at['epochmeter.gpu.count']) AS gpus, toInt64OrNull(r.at['epochmeter.gpu.memory_class']) AS gpu_memory_gib,
  s.stage AS stage, CAST(NULL AS Nullable(Int64)) AS epoch,
  CAST(intDiv(toUnixTimestamp(s.hour), 3600) AS Nullable(Int64)) AS slice,
  toDateTime64(greatest(toDateTime64(s.hour, 6, 'UTC'), toDateTime64(r.began, 6, 'UTC')), 6, 'UTC') AS start,
  s.spent AS duration_s, toUInt64(s.steps) AS steps, if(s.counted > 0, toInt64(s.samples), NULL) AS samples,
  toUInt64(s.passes) AS passes, toUInt64(s.partial) AS partial_passes, p.spent AS phases_s,
  if(empty(mapKeys(p.spent)), p.spent, mapFilter((cause, spent) -> spent > 0, CAST((
    ['data_wait', 'transfer', 'checkpoint', 'useful', 'host'],
    [p.spent['data_wait'], p.spent['transfer'], p.spent['checkpoint'],
     p.spent['forward'] + p.spent['loss'] + p.spent['backward'] + p.spent['optimizer'],
     toFloat32(s.spent - p.spent['data_wait'] - p.spent['transfer'] - p.spent['checkpoint'] - p.spent['forward'] - p.spent['loss']
       - p.spent['backward'] - p.spent['optimizer'])]), 'Map(LowCardinality(String), Float32)'))) AS ledger_s,
  if(s.meters > 0, s.joules, NULL) AS energy_j, if(s.meters > 0, s.uncertain, NULL) AS energy_uncertain_j,
  d.zeros AS step_zeros, if(empty(mapKeys(d.amounts)), toInt32(0), arrayMin(mapKeys(d.amounts))) AS step_offset,
  if(empty(mapKeys(d.amounts)), [], arrayMap(bucket -> toUInt32(d.amounts[toInt32(bucket)]),
    range(arrayMin(mapKeys(d.amounts)), arrayMax(mapKeys(d.amounts)) + 1))) AS step_counts,
  p.names AS phase_names, p.zeros AS phase_zeros, p.offsets AS phase_offsets, p.counts AS phase_counts,
  toUInt64(toUnixTimestamp64Micro(toDateTime64(r.told, 6, 'UTC'))) AS as_of, toUInt64(0) AS log_bytes, toUInt64(0) AS log_rows
FROM stages AS s INNER JOIN resources AS r ON s.run = r.run
LEFT JOIN phases AS p ON s.run = p.run AND s.stage = p.stage AND s.hour = p.hour
LEFT JOIN durations AS d ON s.run = d.run AND s.stage = d.stage AND s.hour = d.hour
