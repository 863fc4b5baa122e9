"""The one door to a model: resolve a name, load it without running its code, collect its activations."""
