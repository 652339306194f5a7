"""Many runs as one table: read logs into Parquet files, or into ClickHouse. Nothing here is loaded by a run."""
