"""Worker groups of changing size on Ray Train, preemption among it."""
