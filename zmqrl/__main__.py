"""``python -m zmqrl`` is ``zmqrl``."""

from zmqrl.cli import main

main()
