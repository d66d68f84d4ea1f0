"""Experiments: questions about the system as a whole, answered by a program that anyone can run again."""
