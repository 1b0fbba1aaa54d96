"""Whether the store a run is trained on is whole: checked once for a run, not at each start."""

import threading

from sra2cli.core.errors import DataError, UserError
from sra2cli.core.processes import PeerLostError
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
        self.damage: UserError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if not needed:
            if here:
                store.verify_attributes()
        elif here and store.identity[0] <= SMALL:
            store.verify()
        elif here:
            self._thread = threading.Thread(target=self._check, name="verify", daemon=True)
            self._thread.start()

    def flags(self) -> tuple[bool, bool]:
        """Whether it still runs, and whether it has found damage: asked in this order, as it may
        end in between."""
        running = self._thread is not None and self._thread.is_alive()
        return running, self.damage is not None

    def refuse(self, damaged: int) -> None:
        """Raise what was found: here, or by another process, as `damaged` says."""
        if self.damage is not None:
            raise self.damage
        if damaged:
            raise PeerLostError(f"another process has found {self.store.path} to be damaged")

    def close(self) -> None:
        """Give up, so that the process can end."""
        self._stop.set()

    def _check(self) -> None:
        try:
            self.store.verify(stop=self._stop)
        except DataError as error:
            self.damage = error
        except Exception as error:  # whatever a file that is being damaged makes its readers raise
            self.damage = DataError(f"{self.store.path} cannot be read: {error}")
