"""CDA R2 documents: WS/T 500, C-CDA, and any other with a narrative."""
