"""Whether the store a run is trained on is whole: checked once for a run, not at each start."""

import threading

from sra2cli.core.errors import DataError
from sra2cli.data.store import Store

SMALL = 2_000_000_000  # bytes: a store up to here is checked before the first step


class StoreCheck:
    """The check of every byte of a store; of a large one in a thread, while the run trains.

    No checkpoint is written before it has ended (see loop), so none is of damaged data.

    Args:
        needed: the run has not begun yet, or its store is not the file that was checked then.
        here: this process is the one that checks on this machine.

    Raises:
        DataError: a small store is damaged, or the attributes of any.
    """

    def __init__(self, store: Store, *, needed: bool, here: bool):
        self.store, self.needed = store, needed
        self.damage: DataError | None = None
        self._thread: threading.Thread | None = None
        if not needed or not here:
            if here:
                store.verify_attributes()
        elif store.identity[0] <= SMALL:
            store.verify()
        else:
            self._thread = threading.Thread(target=self._check, name="verify", daemon=True)
            self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def refuse(self, damaged: int) -> None:
        """Raise DataError if any process has found damage: here, or as `damaged` says."""
        if self.damage is not None:
            raise self.damage
        if damaged:
            raise DataError(f"{self.store.path} is damaged: another process found it")

    def _check(self) -> None:
        try:
            self.store.verify(quiet=True)
        except DataError as error:
            self.damage = error
        except OSError as error:
            self.damage = DataError(f"{self.store.path} cannot be read: {error}")
