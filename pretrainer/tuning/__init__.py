"""What a sweep knows without Ray: its space, who is ended early, what is left in storage, and what the losses say."""
