"""What the server itself provides: programs, taps, ports of its switch, and what they can be asked."""
