"""Migrations: carried out, made by others, remembered."""
