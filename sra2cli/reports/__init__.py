"""sra2 report: one page that shows runs beside each other."""
