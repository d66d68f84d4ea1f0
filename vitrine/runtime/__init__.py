"""What every process shares: settings, logs, metrics, gRPC server, health, errors, Kafka, Redis, embedded stack."""
