"""What a run says of itself: audit, metrics, phases, goodput, the watchdog."""
