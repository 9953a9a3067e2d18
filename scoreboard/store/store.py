"""Typed access to everything in Redis except updates, which go through the dispatcher.

Reads may be repeated at any time. A component that needs only a part of this interface is typed by
that part: ``Boards``, ``Partitions``, ``Acts``, ``CatalogueMirror``, ``BoardList``.
"""

from scoreboard.store.acts import Acts
from scoreboard.store.board_list import BoardList
from scoreboard.store.boards import Boards
from scoreboard.store.catalogue_mirror import CatalogueMirror
from scoreboard.store.corrections import Corrections
from scoreboard.store.rebuilding import Rebuilding


class Store(Boards, Corrections, Acts, Rebuilding, CatalogueMirror, BoardList):
    """All parts of the store over one client."""
