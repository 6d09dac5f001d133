"""Reports: HTML pages, terminal output, plots and images."""
