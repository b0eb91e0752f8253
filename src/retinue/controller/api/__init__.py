"""The manager's interface: REST with JSON bodies and a stream of events."""
