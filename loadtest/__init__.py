"""Load: an open-loop generator, a stair to the knee, a locust file, and `vitrine loadtest` (docs/loadtest.md)."""
