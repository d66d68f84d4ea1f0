"""The jobs that feed the services: each ends in a published artifact."""
