"""What every wing stands on: errors, files, console, clock. Knows no network, no data."""
