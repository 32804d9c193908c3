"""Virtual time: the real state machines of shards and workers, with simulated hosts and connections around them."""
