"""What the commands share: from a config to a running cluster, a session of a run, and its results."""
