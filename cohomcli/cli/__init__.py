"""The command line: one file per command; it parses, calls one job and prints."""
