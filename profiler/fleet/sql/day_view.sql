-- fleet_day: the sums of each day, the last ones that have all of it. Sums of less than 9/10 of the time that a day once had were made
-- when its rows had been dropped: a log that came late takes nothing away from what is kept.
SELECT * EXCEPT (made, of_day) FROM fleet_day_loaded
WHERE (day, made) IN (
  SELECT day, max(made) FROM (
    SELECT day, made, of_day, max(of_day) OVER (PARTITION BY day) AS most FROM fleet_day_loaded
  ) WHERE of_day >= 0.9 * most GROUP BY day
)
