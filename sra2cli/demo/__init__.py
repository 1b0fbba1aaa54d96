"""sra2 demo: the whole pipeline on data that need no download."""
