"""Spikes and what is done about them; early warnings; a step run again."""
