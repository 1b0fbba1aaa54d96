"""Images → numbers."""
