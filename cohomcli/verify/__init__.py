"""The checker of certificates: ball arithmetic, exact rounding and integers; it never imports torch.

Everything here is the trusted base of the word `proved`. The prover (`cohomcli.precision.prove`) searches with whatever
tools it likes, and then states only what this package accepts.
"""
