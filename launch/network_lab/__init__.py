"""What `launch/netlab` does; standard library only."""
