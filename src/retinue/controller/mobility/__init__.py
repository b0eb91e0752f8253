"""Named entities, the resource manager and the mobility manager."""
