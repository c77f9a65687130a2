"""Normalisation and quality rules: text -> reason or None."""
