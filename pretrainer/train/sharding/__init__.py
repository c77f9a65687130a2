"""How a model is split over workers, applied to it from outside in one order (parallel.py)."""
