"""A run: its settings, processes, checkpoints, training, predictions, metrics and pictures."""
