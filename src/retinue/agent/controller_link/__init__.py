"""What an agent tells its controller."""
