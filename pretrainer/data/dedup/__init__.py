"""Exact and near-duplicate removal, in the order of the stream."""
