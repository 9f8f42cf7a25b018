"""Accepted pairs to split, hard negatives and training examples."""
