"""Objects to documents: sources and their units, formats, compression, dead letters."""
