"""The prover: turns captured models into plain graphs, searches for refutations, and writes certificates.

Whatever it finds counts only after `cohomcli.verify` has accepted it.
"""
