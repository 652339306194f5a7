-- fleet_usage: what users of packages use, from a collector's tables: a row for each summary of counts.
-- A summary has an id of its own, drawn at random, and arrives once or again: the last point counts.
SELECT ResourceAttributes['service.instance.id'] AS summary, ResourceAttributes['epochmeter.app.name'] AS package,
  ResourceAttributes['epochmeter.app.version'] AS package_version, toDateTime64(max(TimeUnix), 6, 'UTC') AS told,
  replaceOne(MetricName, 'epochmeter.usage.', '') AS kind,
  multiIf(MetricName = 'epochmeter.usage.features', Attributes['epochmeter.usage.feature'],
    MetricName = 'epochmeter.usage.commands', Attributes['epochmeter.usage.command'],
    MetricName = 'epochmeter.usage.options',
      concat(Attributes['epochmeter.usage.command'], '.', Attributes['epochmeter.usage.option']),
    Attributes['epochmeter.usage.fact']) AS name,
  Attributes['epochmeter.usage.outcome'] AS outcome, toUInt64(argMax(Value, TimeUnix)) AS times
FROM {tables}_sum
WHERE ResourceAttributes['service.instance.id'] <> '' AND MetricName IN ('epochmeter.usage.features', 'epochmeter.usage.commands', 'epochmeter.usage.options', 'epochmeter.usage.facts')
GROUP BY summary, package, package_version, kind, name, outcome
