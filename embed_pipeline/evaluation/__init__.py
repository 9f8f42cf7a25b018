"""Is the tuned model better, by how much, and is that certain: query sets, metrics, intervals, report."""
