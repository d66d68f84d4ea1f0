"""Visual search: pictures to vectors, vectors to binary codes, and the index that searches both (docs/ann.md)."""
