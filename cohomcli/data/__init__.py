"""Texts: the built-in corpus, files, hub data sets, and seeded samples of distinct texts."""

from cohomcli.data.draw import split_by_hash
from cohomcli.data.sample import load_texts
from cohomcli.data.spec import DatasetSpec, TextSample

__all__ = ["DatasetSpec", "TextSample", "load_texts", "split_by_hash"]
