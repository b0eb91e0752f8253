"""The guest: its image, and commands inside it."""
