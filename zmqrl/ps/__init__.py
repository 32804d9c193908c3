"""The parameter server: shards that own slices of a parameter vector, and the workers' side of them."""
