"""Learned quality: a linear classifier and an n-gram language model, trained by pipelines and applied as stages."""
