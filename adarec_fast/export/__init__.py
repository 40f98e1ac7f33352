"""A trained run as files that serve without this package, each checked against the model.

::

    OUTPUT/torch/       model.pt2   torch.export: needs torch
    OUTPUT/aoti/        model.pt2   AOTInductor: needs libtorch, for Python or C++
    OUTPUT/onnx/        model.onnx  needs a runtime for ONNX
    OUTPUT/embeddings/  items.safetensors, user.pt2 (or user.onnx)
    OUTPUT/ann/         the same and index.faiss

In each folder ``items.json`` has the external id of every item index and ``manifest.json`` inputs,
outputs, versions, what the check found, and the files' SHA-256. A folder is written under another
name and renamed when it has passed; one that fails leaves what was there.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..config import ConfigError
from ..defaults import on_cpu
from ..files import save_file
from ..models.base import UserGraph
from ..models.memory import TENSORS, VALUES
from ..models.pretrained import ITEMS
from ..training import Run
from ..training.checkpoint import save_checkpoint
from ..training.run_folder import locked
from ..version import __version__
from . import index as ann
from .check import TOLERANCE, Outcome, Request, check, ranked_right, requests, sample
from .errors import ExportError
from .foreign import check_foreign
from .formats import PROGRAMS, Format, Program, require
from .graph import RankingModel, capture, remembered

__all__ = ["ExportError", "ExportFormat", "ExportOptions", "Exported", "export_run"]

ExportFormat = Literal["torch", "aoti", "onnx", "embeddings", "ann"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
EMBEDDINGS, INDEX = "items.safetensors", "index.faiss"
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class ExportOptions:
    """What all formats share.

    Attributes:
        k: items a user.
        exclude_seen: give the program a second input, what must not come again.
        max_batch: most users at once.
        users: users of the data that the check compares, besides a random history of each length.
        dtype: of stored item embeddings, ``"float32"`` or ``"float16"``; programs are float32.
        user_model: the format of the user model beside embeddings: torch, aoti or onnx.
        index: faiss's description of the index.
        search: faiss's search parameters.
        min_recall: an index that finds less of the k best items than this is refused.

    Raises:
        ConfigError: a value out of range.
    """

    k: int = 20
    exclude_seen: bool = True
    max_batch: int = 1024
    users: int = 1000
    dtype: str = "float32"
    user_model: str = "torch"
    index: str = "HNSW32"
    search: str = "efSearch=128"
    min_recall: float = 0.95

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("max_batch", 2), ("users", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r} must be an int of at least {least}")
        for name, known in (("dtype", _DTYPES), ("user_model", PROGRAMS)):
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in known:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}"
                )
        recall = self.min_recall
        if not isinstance(recall, (int, float)) or not 0 <= recall <= 1:
            raise ConfigError(f"min_recall={recall!r} must lie in 0..1")


@dataclass(frozen=True)
class Exported:
    """A folder that passed.

    Attributes:
        format: one of the formats.
        folder: where it is.
        size: bytes of what serving needs: all files but the manifest.
        outcome: of comparing the k best items with the model's.
        index: of the index, if there is one.
    """

    format: ExportFormat
    folder: Path
    size: int
    outcome: Outcome
    index: ann.IndexOutcome | None = None


@on_cpu()
def export_run(
    run: Run, output: Path, formats: Sequence[ExportFormat], options: ExportOptions | None = None
) -> list[Exported]:
    """Export a run's model in some formats, in the order given.

    Args:
        run: from :func:`adarec_fast.training.load_run`.
        output: a folder is made in it for each format, replacing one of an earlier export.
        formats: of ``torch``, ``aoti``, ``onnx``, ``embeddings``, ``ann``.
        options: the rest.

    Raises:
        ConfigError: an option out of range, a model that has no such graph, a missing extra.
        ExportError: a format that could not be made or does not rank as the model does.
        CheckpointError: the files cannot be written.
        RunFolderError: another export is at work in the folder.
    """
    options = options or ExportOptions()
    for format in formats:
        if format not in FORMATS:
            raise ConfigError(f"format={format!r} must be one of {', '.join(FORMATS)}")
        for program in (format, options.user_model):
            # Said now, before any work is lost.
            if program in PROGRAMS and (program == format or format not in PROGRAMS):
                for package in PROGRAMS[program].packages:
                    require(package, "onnx", f"the format {program}")
        if format == "ann":
            ann.import_faiss()
    if not run.model.by_products:
        raise ConfigError(
            f"{run.path}: {type(run.model).__name__} scores items otherwise than by products of "
            "vectors, and an export needs vectors, as adarec, sasrec or popularity have them; "
            f"adarec-fast serve {run.path} serves this one"
        )
    ranking = RankingModel(run.model, k=options.k, exclude_seen=options.exclude_seen)
    config = run.model.config
    histories = sample(
        run.data.values, run.data.offsets, options.users, config.num_items, config.max_length
    )
    given = list(
        requests(
            ranking, histories, exclude_seen=options.exclude_seen, max_batch=options.max_batch
        )
    )
    made = []
    captured: dict[bool, Program] = {}
    with locked(output):
        for format in formats:
            work = _Work(run, format, options, ranking, given, captured)
            save_checkpoint(output, format, work.fill, work.about)
            made.append(work.exported(output / format))
    return made


class _Work:
    """One format being made: the files, the check, and what the manifest says of both."""

    def __init__(
        self,
        run: Run,
        format: ExportFormat,
        options: ExportOptions,
        ranking: RankingModel,
        given: Sequence[Request],
        captured: dict[bool, Program],
    ) -> None:
        self.captured = captured
        self.run, self.format, self.options = run, format, options
        self.ranking, self.given = ranking, given
        self.device = run.model.device
        self.outcome: Outcome | None = None
        self.index: ann.IndexOutcome | None = None
        self.about: dict[str, Any] = {}

    def fill(self, folder: Path) -> None:
        """Write the files into an empty folder and check them; completes :attr:`about`."""
        (folder / ITEMS).write_text(json.dumps(self.run.data.items.to_json()), encoding="utf-8")
        if self.format in PROGRAMS:
            self._fill_program(folder)
        else:
            self._fill_embeddings(folder)
        self._describe()

    def exported(self, folder: Path) -> Exported:
        """The result, once the folder is in place."""
        assert self.outcome is not None
        names = self.about["files"]
        size = sum((folder / name).stat().st_size for name in names)
        return Exported(self.format, folder, size, self.outcome, self.index)

    def _fill_program(self, folder: Path) -> None:
        file = f"model{PROGRAMS[self.format].suffix}"
        call = self._write(PROGRAMS[self.format], self.ranking, folder / file)

        def answer(item_ids: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
            inputs = (item_ids, seen) if self.options.exclude_seen else (item_ids,)
            items, scores = call(*inputs)
            return items, scores

        table = self.run.model.table()
        self._compare(answer, torch.float32)
        self._give_foreign(
            call, lambda found, request: ranked_right(found[0], found[1], request, table),
            seen=self.options.exclude_seen,
        )  # fmt: skip
        k = self.options.k
        self.about |= {
            "files": [file, ITEMS],
            "inputs": self._inputs(seen=self.options.exclude_seen),
            "outputs": [
                {"name": "items", "dtype": "int64", "shape": ["batch", k]},
                {"name": "scores", "dtype": "float32", "shape": ["batch", k]},
            ],
            "k": k,
            "exclude_seen": self.options.exclude_seen,
        }

    def _fill_embeddings(self, folder: Path) -> None:
        model, options = self.run.model, self.options
        dtype = _DTYPES[options.dtype]
        table = model.table().detach()[1:].cpu().to(dtype).contiguous()
        save_file({"embeddings": table}, folder / EMBEDDINGS)
        stored = load_file(folder / EMBEDDINGS)["embeddings"].float()
        files = [EMBEDDINGS, ITEMS]
        if model.memory is not None:
            model.memory.write(folder)
            files += [TENSORS, VALUES]
        if self.format == "ann":
            self._fill_index(folder, stored)
            files.append(INDEX)
        kept = PROGRAMS[options.user_model]
        file = f"user{kept.suffix}"
        files.append(file)
        represent = self._write(kept, self.ranking.user_model, folder / file)
        items = stored.to(self.device)

        def answer(item_ids: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
            scores = represent(item_ids)[0] @ items.T
            # Ids are padded with 0, which has no row.
            scores = torch.cat([scores[:, :1], scores], 1)
            if model.memory is not None:
                scores = scores + remembered(model.memory, item_ids, scores)
            if options.exclude_seen:
                scores = scores.scatter(1, seen, float("-inf"))
            best = scores[:, 1:].topk(options.k, dim=-1)
            return best.indices + 1, best.values

        self._compare(answer, dtype)
        self._give_foreign(represent, _same_vectors, seen=False)
        size = table.shape[1]
        self.about |= {
            "files": files,
            "inputs": self._inputs(seen=False),
            "outputs": [{"name": "user", "dtype": "float32", "shape": ["batch", size]}],
            "embeddings": {
                "file": EMBEDDINGS, "dtype": options.dtype, "shape": list(table.shape),
                "row": "item index - 1", "score": "inner product with user",
            },
        }  # fmt: skip
        if model.memory is not None:
            self.about["memory"] = {
                "files": [TENSORS, VALUES],
                "rows": "neighbours and weights of item i lie at rows[i] to rows[i + 1]",
                "score": "adds alpha log(1 + gamma S_j), S_j the sum over the history, its last "
                "max_length items, of decay^(steps from its end) times the item's weight of j",
                "search": "an item of the k best is among the index's k best or has S_j > 0: score "
                "both exactly and take the k best",
            }

    def _fill_index(self, folder: Path, stored: Tensor) -> None:
        options = self.options
        ann.write_index(stored, folder / INDEX, factory=options.index, search=options.search)
        users = torch.cat([request.user for request in self.given])
        bonus = None
        memory = self.run.model.memory
        if memory is not None:
            blank = memory.weights.new_zeros(1, memory.num_items + 1)
            bonus = torch.cat([
                remembered(memory, given.item_ids, blank.expand(given.user.shape[0], -1))[:, 1:]
                for given in self.given
            ])  # fmt: skip
        self.index = ann.measure(folder / INDEX, stored, users, options.k, bonus)
        if self.index.recall < options.min_recall:
            raise ExportError(
                f"{INDEX}: recall@{options.k} against exact search is {self.index.recall:.4f}, "
                f"under min_recall={options.min_recall}; search more (search={options.search!r}) "
                f"or take another index (index={options.index!r})"
            )
        self.about["index"] = {
            "file": INDEX, "factory": options.index, "search": options.search,
            "row": "item index - 1", "k": options.k, **self.index._asdict(),
        }  # fmt: skip

    def _write(
        self, kept: Format, module: UserGraph | RankingModel, path: Path
    ) -> Callable[..., tuple[Tensor, ...]]:
        ranks = isinstance(module, RankingModel)
        if ranks not in self.captured:
            self.captured[ranks] = capture(
                module, self.run.model.config.max_length, max_batch=self.options.max_batch,
                num_items=self.run.model.config.num_items,
            )  # fmt: skip
        kept.write(self.captured[ranks], path)
        return kept.load(path, self.device)

    def _compare(
        self, answer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype
    ) -> None:
        items = self.run.model.table()
        self.outcome = check(self.format, answer, self.given, items, self.options.k, dtype)
        self.about["check"] = {**asdict(self.outcome), "tolerance": TOLERANCE[dtype]}

    def _give_foreign(
        self,
        call: Callable[..., tuple[Tensor, ...]],
        right: Callable[[tuple[Tensor, ...], Request], Tensor],
        *,
        seen: bool,
    ) -> None:
        config = self.run.model.config
        self.about["foreign_inputs"] = check_foreign(
            self.format, call, self.given, right, seen=seen, num_items=config.num_items,
            longest=config.max_length, max_batch=self.options.max_batch,
        )  # fmt: skip

    def _inputs(self, *, seen: bool) -> list[dict[str, Any]]:
        described: list[dict[str, Any]] = [
            {
                "name": "item_ids", "dtype": "int64", "shape": ["batch", "length"],
                "meaning": "item indices, oldest first, padded with 0 on the right or the left",
            }
        ]  # fmt: skip
        if seen:
            described.append({
                "name": "seen", "dtype": "int64", "shape": ["batch", "seen"],
                "meaning": "item indices that must not come again, padded with 0",
            })  # fmt: skip
        return described

    def _describe(self) -> None:
        config = self.run.model.config
        self.about |= {
            "export": self.format,
            "batch": [1, self.options.max_batch],
            "length": [1, config.max_length],
            "num_items": config.num_items,
            "items": {"file": ITEMS, "id": "ids[item index - 1]"},
            "device": self.device.type,
            "run": {"data": self.run.data.name, "checkpoint": self.run.which},
            "versions": {
                "adarec_fast": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                **_versions(self.format, self.options.user_model),
            },
        }


def _same_vectors(found: tuple[Tensor, ...], request: Request) -> Tensor:
    """bool ``[B]``: users ``[B, D]`` that are the model's within rounding."""
    distance = (found[0] - request.user).norm(dim=-1)
    # What a score may differ by is less, since not all of it lies along one item.
    near = distance <= 10 * TOLERANCE[torch.float32] * request.user.norm(dim=-1)
    return near | ~request.clear


def _versions(format: str, user_model: str) -> dict[str, str]:
    """Of the optional packages that had a part in it."""
    from importlib.metadata import version

    names = []
    if "onnx" in (format, user_model if format not in PROGRAMS else ""):
        names += ["onnx", "onnxscript", "onnxruntime"]
    if format == "ann":
        names.append("faiss-cpu")
    return {name: version(name) for name in names}
