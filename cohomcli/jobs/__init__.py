"""One file per command: load, run the engines, write the run folder."""
