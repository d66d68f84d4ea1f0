"""A market on disk: Parquet schemas, their validator, readers, converters and the simulator (docs/data.md)."""
