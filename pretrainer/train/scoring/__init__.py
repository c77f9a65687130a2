"""Held-out loss and task files while training, the best checkpoint, an early end."""
