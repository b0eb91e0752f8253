"""What a laboratory is made of: its nodes, switches, servers and addresses, as a file says it."""
