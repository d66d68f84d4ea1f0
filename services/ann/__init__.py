"""The ann service: visual search over the `binary-index` artifact, swapped when a new version is published."""
