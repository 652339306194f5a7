-- What the users of a package use, by week: its features, commands and options, and how its runs are and end.
-- summaries: how many reports of counts tell it; one process's counts are in one report, and nobody can be told by it.
SELECT package, kind, name, outcome, CAST(date_trunc('week', told) AS DATE) AS week, package_version AS version,
  count(DISTINCT summary) AS summaries, CAST(sum(times) AS BIGINT) AS times
FROM fleet_usage WHERE told >= CAST('1970-01-01' /* SINCE */ AS DATE)
GROUP BY package, kind, name, outcome, week, package_version
ORDER BY package, kind, week, times DESC, name, outcome, version
