"""One command per file; each says what it needs and calls the package that does it."""
