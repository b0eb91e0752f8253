"""What each switch holds, and how it comes to hold it."""
