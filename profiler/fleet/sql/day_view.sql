-- fleet_day: the sums of each day, as of the load that knew most rows of it, and of these the last one. So a log that comes late, when
-- a day's rows have been dropped, takes nothing away from what is kept.
SELECT * EXCEPT (made, of_day) FROM fleet_day_loaded
WHERE (day, made) IN (SELECT day, argMax(made, (of_day, made)) FROM fleet_day_loaded GROUP BY day)
