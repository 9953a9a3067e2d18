"""A bounded dict by name: memory stays bounded however many boards clients ask for."""

from collections import OrderedDict
from typing import TypeVar

ValueT = TypeVar("ValueT")


class Recent(OrderedDict[str, ValueT]):
    """A dict of which the least recently kept or used item is dropped when it has too many.

    Its users can compute or read a dropped value again.
    """

    def __init__(self, most: int) -> None:
        """Keep at most ``most`` items."""
        super().__init__()
        self.most = most

    def use(self, name: str) -> ValueT | None:
        """Return the value of a name, and drop it later than the others; None if there is none."""
        value = self.get(name)
        if value is not None:
            self.move_to_end(name)
        return value

    def keep(self, name: str, value: ValueT) -> ValueT:
        """Set the value of a name and return it."""
        self[name] = value
        self.move_to_end(name)
        if len(self) > self.most:
            self.popitem(last=False)
        return value
