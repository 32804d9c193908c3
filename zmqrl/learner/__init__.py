"""The computation of a worker, without sockets: games, networks, rollouts, returns and losses."""
