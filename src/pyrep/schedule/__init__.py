"""One heap, bounded pools, backoff."""
