"""Sharded checkpoints: written beside the training, verified, committed, copied."""
