"""Which neurons are to change."""
