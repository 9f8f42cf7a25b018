"""What training raises."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot start or go on."""
