"""The persistence engine: point clouds, Vietoris-Rips diagrams and their summaries."""
