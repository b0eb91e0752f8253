"""The agent's part of a migration: source, target, and the connection between two agents."""
