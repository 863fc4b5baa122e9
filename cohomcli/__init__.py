"""cohom: what shape do the representations of a neural network have, and which parts of it need precision?"""

__version__ = "0.1.0"
