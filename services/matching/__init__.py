"""Near-line matching as processes: a worker that keeps lists fresh, a server that fetches them."""
