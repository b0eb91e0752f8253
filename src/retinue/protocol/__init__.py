"""The contract between controller, agents, command line and laboratory."""
