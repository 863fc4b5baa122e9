"""Mutation testing: small changes to the engines' code, each of which some test ought to notice."""
