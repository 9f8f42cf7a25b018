"""Training examples to a fine-tuned encoder: loss, batches, policy, trainer."""
