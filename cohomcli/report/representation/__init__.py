"""The report's part on geometry, similarity between layers, tracking over them, and attention graphs."""
