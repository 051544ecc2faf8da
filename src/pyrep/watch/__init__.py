"""Find out which databases changed."""
