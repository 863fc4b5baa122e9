"""Reports: markdown, HTML and plots made from result dataclasses; nothing is computed here."""
