"""Approximate search over item embeddings by inner product, with faiss."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from .check import latency
from .errors import ExportError
from .formats import require


class IndexOutcome(NamedTuple):
    """What an index was found to do.

    Attributes:
        recall: share of the k best items by exact search that the index finds, mean over users.
        latency_ms: median time of a search for one user, one thread or more as faiss is set.
        exact_latency_ms: of an exact search by faiss.
    """

    recall: float
    latency_ms: float
    exact_latency_ms: float


def import_faiss() -> ModuleType:
    """faiss, or a ConfigError that says how to install it."""
    return require("faiss", "ann", "the format ann")


def write_index(embeddings: Tensor, path: Path, *, factory: str, search: str) -> None:
    """Build an index and write it.

    Args:
        embeddings: float32 ``[V, D]``.
        path: the file.
        factory: faiss's description of the index, such as ``"HNSW32"`` or ``"IVF256,Flat"``.
        search: faiss's search parameters, such as ``"efSearch=128"``; they go into the file.

    Raises:
        ConfigError: faiss does not know the description or a parameter, or is not installed.
        ExportError: faiss cannot train the index on so many items.
    """
    faiss = import_faiss()
    try:
        index = faiss.index_factory(embeddings.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if search:
            faiss.ParameterSpace().set_index_parameters(index, search)
    except RuntimeError as error:
        raise ConfigError(
            f"index={factory!r}, search={search!r}: faiss says: {_sentence(error)}"
        ) from error
    array = embeddings.numpy()
    try:
        index.train(array)
    except RuntimeError as error:
        raise ExportError(
            f"index={factory!r} cannot be trained on {len(array)} items: {_sentence(error)}"
        ) from error
    index.add(array)
    faiss.write_index(index, str(path))


@torch.no_grad()
def measure(
    path: Path, embeddings: Tensor, users: Tensor, k: int, bonus: Tensor | None = None
) -> IndexOutcome:
    """Read an index back and search for users ``[B, D]`` with it and exactly, nothing masked.

    Args:
        path: the index.
        embeddings: float32 ``[V, D]``.
        users: ``[B, D]``.
        k: items a user.
        bonus: ``[B, V]``, what a memory adds, >= 0; the index's answers and the items that gain
            something are then scored exactly, and the k best of both are the answer.
    """
    faiss = import_faiss()
    index = faiss.read_index(str(path))
    exact = faiss.IndexFlatIP(embeddings.shape[1])
    exact.add(embeddings.numpy())
    queries = users.cpu().numpy()
    found, best = index.search(queries, k)[1], exact.search(queries, k)[1]
    if bonus is not None:
        scores = users.cpu() @ embeddings.T + bonus.cpu()
        best = scores.topk(k, dim=1).indices.numpy()
        there = bonus.cpu() > 0
        rows, columns = np.nonzero(found >= 0)  # fewer answers are filled up with -1
        there[rows, found[rows, columns]] = True
        found = scores.where(there, float("-inf")).topk(k, dim=1).indices.numpy()
    hits = [np.intersect1d(a, b).size for a, b in zip(found, best, strict=True)]
    one = queries[:1]
    return IndexOutcome(
        sum(hits) / best.size,
        latency(lambda: index.search(one, k)),
        latency(lambda: exact.search(one, k)),
    )


def _sentence(error: RuntimeError) -> str:
    """faiss's own words, without the function and file in front."""
    return str(error).splitlines()[0].rsplit(": ", 1)[-1]
