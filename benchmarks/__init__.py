"""Commands that measure: speed and agreement against other tools. Nothing here runs in the tests."""
