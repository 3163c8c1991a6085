"""Sets of feedback as they were published; each file holds related sets and their entries of SOURCES."""
