from ._native import one
