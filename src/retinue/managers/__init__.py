"""Mobility manager and resource manager as processes of their own; a controller does without them, too."""
