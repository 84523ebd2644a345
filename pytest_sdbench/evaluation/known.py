"""Estimate scores of images that a store holds, named by fingerprints alone: nothing is loaded or drawn."""

from __future__ import annotations

from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.features.extractors import column_keys
from pytest_sdbench.features.references import load_references
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.standard_error import Groups
from pytest_sdbench.protocols.protocol import DRAWN, Protocol
from pytest_sdbench.store.shards import Store


def known_estimate(
    checkpoint: str,
    protocol: Protocol,
    metric: str,
    workspace: Workspace,
    *,
    groups: Groups | None = None,
    reference: str | None = None,
) -> Estimate | Undefined:
    """Return a score of a checkpoint, given by its fingerprint, under a protocol.

    `reference` is the fingerprint of the checkpoint that pairs are compared with, `groups` tell which images
    share a prompt. Raises Unavailable where the store lacks images, or this machine what the metric needs,
    and EvidenceError for a store that cannot be read.
    """
    one = protocol.only(metric)
    references = load_references(one, workspace.data_root)
    for lacking in references.values():
        if isinstance(lacking, Unavailable):
            raise lacking
    columns = column_keys(one, reference, workspace)
    manifest = {"protocol": one.model_dump(mode="json", include=DRAWN)}
    evidence = Store(workspace.store).open(checkpoint, one.draw_fingerprint, manifest, columns)
    if (missing := evidence.missing(one.n)) or not columns:
        count = sum(map(len, missing)) or one.n
        what = f"{count:,} of {one.n:,} images of {checkpoint} are not in the store"
        raise Unavailable(what, file=evidence.folder, key=metric)
    here = {name: each for name, each in references.items() if not isinstance(each, Unavailable)}
    return estimate(one, evidence.rows(one.n), here, groups)[metric]
