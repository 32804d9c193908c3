"""The inboxes of the shards, the workers and the supervisor."""

from typing import Any

from zmqrl.ps.wire import messages as m

INBOXES: tuple[m.Inbox[Any], ...] = tuple(each for each in vars(m).values() if isinstance(each, m.Inbox))
