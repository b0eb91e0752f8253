"""The comparison with other systems."""
