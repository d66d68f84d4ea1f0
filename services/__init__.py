"""The processes that serve: each folder is one, around a room of the library."""
