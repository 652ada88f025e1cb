"""Times of functions that take turns in one process, so that they can be compared."""
