"""Read the pictures of a draw from the store, drawing those that are not kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evidence import CompleteEvidence, make_evidence
from pytest_sdbench.evaluation.job import Extras
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.pictures import Pictures

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint


@dataclass
class Album:
    """The pictures of a checkpoint under a protocol, all of which are kept when it is made."""

    checkpoint: Checkpoint
    protocol: Protocol
    workspace: Workspace
    drawn: int = 0
    """Of them, how many had to be drawn; the others were kept."""
    _made: CompleteEvidence = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._make()

    def read(self, images: range) -> Pictures:
        """Return the pictures of some images of one shard: the sampler's pixels, before any image step.

        Raises EvidenceError where somebody removes them meanwhile; else as `make_evidence`.
        """
        if (found := self._made.evidence.pictures(images)) is None:
            self._make()  # they were damaged, as only who reads them finds, and are set aside now
            found = self._made.evidence.pictures(images)
        if found is None:
            what = f"the pictures of images {images.start} to {images.stop - 1} are gone"
            raise EvidenceError(what, file=self._made.evidence.folder, remedy="Run again")
        return found[0]

    def _make(self) -> None:
        extras = Extras(columns={}, keep=self.protocol.n)
        self._made = make_evidence(self.checkpoint, self.protocol, self.workspace, extras=extras)
        self.drawn += self._made.images_made
