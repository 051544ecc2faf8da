"""Storage adapters behind one small protocol."""
