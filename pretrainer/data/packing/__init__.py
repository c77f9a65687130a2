"""Documents to sequences: strategies, pack windows, the quality of the shuffle."""
