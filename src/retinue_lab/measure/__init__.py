"""Traffic sent and watched, and what it shows."""
