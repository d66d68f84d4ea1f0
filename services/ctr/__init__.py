"""The ctr service: scores users against ads with the newest click model."""
