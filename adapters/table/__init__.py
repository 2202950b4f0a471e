"""Tables by header contract: CSV, TSV, XLSX, JSON, XML rows."""
