"""Reproductions of papers: from your copies of their data to a table beside theirs."""
