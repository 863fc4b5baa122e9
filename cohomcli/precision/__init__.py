"""The sheaf precision engine: which number format every operation and weight needs, predicted, solved and measured."""
