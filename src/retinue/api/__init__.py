"""I1: the manager's interface, REST with JSON bodies and a stream of events."""
