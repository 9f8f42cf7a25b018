"""Segments to question-answer pairs to scores to accepted pairs."""
