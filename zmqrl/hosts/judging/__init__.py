"""What the measurements of hosts and routes mean for a run. Pure."""
