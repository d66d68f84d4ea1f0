"""Near-line matching: the catalog, users' state, the matcher and the stored-list record (docs/matching.md)."""
