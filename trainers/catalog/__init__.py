"""Bids, ads and items of a market become the `catalog` artifact: `python -m trainers.catalog --help`."""
