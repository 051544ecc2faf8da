"""Plan and execute the way back from a replica."""
