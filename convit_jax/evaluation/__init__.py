"""Evaluation: one step, its sums over all examples, and the accuracy that they make."""
