"""Content by name, as the controller sees it: what is published, and who holds it."""
