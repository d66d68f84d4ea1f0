"""Distributed Equivalent Substitution, first form (arXiv 1909.04823): partial sums move, weights never do."""
