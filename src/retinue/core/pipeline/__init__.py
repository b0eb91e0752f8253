"""The network as it should be -> the entries of every switch. Start with `pipeline`, the table plan."""
