"""Scores of a model on task files, as EleutherAI's lm-evaluation-harness gives them; torch alone, no Ray."""
