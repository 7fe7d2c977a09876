"""The small model, its stories, and the paper in miniature."""
