"""What a comparison has measured, and how it is shown."""
