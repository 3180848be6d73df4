"""Results files: records, filters, tables, series."""
