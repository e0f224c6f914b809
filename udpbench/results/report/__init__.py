"""Records to Markdown, CSV, LaTeX and one self-contained HTML page: ``python -m udpbench report FOLDER``."""
