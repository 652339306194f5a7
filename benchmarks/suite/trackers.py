"""How trackers are started in the programs of several cases: system metrics once a second, nothing sent."""

from __future__ import annotations

MLFLOW = """
import mlflow
mlflow.set_tracking_uri("file:mlruns")
mlflow.set_system_metrics_sampling_interval(1)
mlflow.enable_system_metrics_logging()
mlflow.start_run()
"""
WANDB = "import wandb\nrun = wandb.init(mode='offline', settings=wandb.Settings(silent=True, x_stats_sampling_interval=1))"
CODECARBON = (
    "from codecarbon import OfflineEmissionsTracker\n"
    "tracker = OfflineEmissionsTracker(country_iso_code='DEU', measure_power_secs=1, log_level='critical')\ntracker.start()"
)
