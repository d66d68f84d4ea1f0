"""Measurements of the kernels beside what one would use without them; `make bench` runs them."""
