"""One self-contained HTML page of results, its plots and its pictures."""
