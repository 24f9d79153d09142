"""LoRA tuning: rows, batches, the loss, the loop."""
