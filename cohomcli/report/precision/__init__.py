"""The report of a precision analysis: what can go where and why, in sentences, tables and figures."""
