"""Curation on a sample of every source, as one page to look at: funnel, reasons, measures whose limits can be moved."""
