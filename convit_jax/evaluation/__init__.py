"""Evaluation: one step, its sums over all examples, and the resulting accuracy."""
