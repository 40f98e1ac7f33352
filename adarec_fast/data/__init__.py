"""Reading, splitting and batching interaction data.

``load`` reads files, lists and data frames into ``InteractionData``; ``Split`` is its split, by
leave-one-out or by time; ``TrainingBatches`` and ``EvaluationBatches`` pack it for a model.
"""

from __future__ import annotations

from .batches import Batch, EvaluationBatch, EvaluationBatches, TrainingBatches, pack
from .cuts import Cuts
from .dataset import Dropped, InteractionData, PlantedLabels, ReadReport
from .download import download
from .errors import DataError
from .features import ItemFeatures
from .preprocess import deduplicate, drop_short, k_core, truncate_histories
from .readers import FORMATS, load
from .splits import Split
from .statistics import inspect
from .synthetic import synthetic, write_csv, write_sequences
from .vocabulary import Vocabulary

__all__ = [
    "FORMATS",
    "Batch",
    "Cuts",
    "DataError",
    "Dropped",
    "EvaluationBatch",
    "EvaluationBatches",
    "InteractionData",
    "ItemFeatures",
    "PlantedLabels",
    "ReadReport",
    "Split",
    "TrainingBatches",
    "Vocabulary",
    "deduplicate",
    "download",
    "drop_short",
    "inspect",
    "k_core",
    "load",
    "pack",
    "synthetic",
    "truncate_histories",
    "write_csv",
    "write_sequences",
]
