"""What stands in front of every listener: TLS handshakes, bounded and counted."""
