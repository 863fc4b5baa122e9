"""Run folders and caches: everything that is written to disk is written whole or not at all."""
