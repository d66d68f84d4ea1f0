"""Vectors of the `embeddings` artifact become the `binary-index` artifact: `python -m trainers.bdg --help`."""
