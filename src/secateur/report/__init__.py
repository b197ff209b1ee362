"""Read results only; tables, plots and one self-contained HTML page."""
