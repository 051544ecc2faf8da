"""One database's life: attach, prove, sync, checkpoint, park."""
