"""Who is let in at the controller's listeners."""
