"""Between backbone and detection heads: maps in, maps out."""
