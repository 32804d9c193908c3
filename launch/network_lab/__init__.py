"""The code of `launch/netlab`. Standard library only."""
