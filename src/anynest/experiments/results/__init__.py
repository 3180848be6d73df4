"""Results files: records, their validation and selection, tables and series."""
