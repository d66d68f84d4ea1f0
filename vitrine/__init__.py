"""Near-line ad matching, click-rate scoring and visual search, served over gRPC."""
