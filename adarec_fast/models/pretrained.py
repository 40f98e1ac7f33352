"""Models on disk: safetensors weights, a JSON configuration, the item vocabulary. No pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..config import ConfigError, ModelConfig, Precision, read_mapping
from ..data import DataError, ItemFeatures, Vocabulary
from ..defaults import on_cpu
from ..files import save_file, scratch_folder
from . import memory
from .base import SequenceModel
from .registry import DEFAULT, build, create_config, described

WEIGHTS, CONFIG, ITEMS = "model.safetensors", "config.json", "items.json"
FEATURES, ABOUT_FEATURES = "features.safetensors", "features.json"
# Names and shapes of 256 layers and of Adam's state for them take about 2 MB.
_LARGEST_HEADER = 4 << 20


class CheckpointError(RuntimeError):
    """A saved model that is missing, damaged, or of another catalogue.

    Example:
        >>> af.ADARec.from_pretrained("nowhere")
        Traceback (most recent call last):
        ...
        adarec_fast.models.pretrained.CheckpointError: nowhere: ...
    """


def save(model: SequenceModel, folder: Path) -> None:
    """Write a model's folder whole, or leave what was there.

    The files go to a temporary folder beside it first; the old folder is put aside for the moment
    between the two renames. A link stays one, and what it leads to is replaced.

    Raises:
        CheckpointError: it cannot be written, e.g. a full disk.
    """
    folder = Path(os.path.realpath(folder))
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = scratch_folder(folder)
        write(model, temporary)
        old = temporary.with_name(temporary.name + "-old")
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the model cannot be saved: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write(model: SequenceModel, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the files into an existing folder, in place, each flushed to the disk.

    ``state`` replaces the model's own, of which a worker may have a part only.

    Raises:
        CheckpointError: a parameter is not float32, and no configuration could read it back.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype is not torch.float32:
            raise CheckpointError(
                f"{folder}: {name} is {parameter.dtype}, and a saved model is float32; "
                "model.float() makes it so"
            )
    state = model.state_dict() if state is None else state
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / WEIGHTS)
    text = json.dumps(described(model.config), indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    if model.item_vocabulary is not None:
        text = json.dumps(model.item_vocabulary.to_json())
        (folder / ITEMS).write_text(text, encoding="utf-8")
    if model.memory is not None:
        model.memory.write(folder)
    if model.item_features is not None:
        save_file(model.item_features.tensors(), folder / FEATURES)
        text = json.dumps(model.item_features.described())
        (folder / ABOUT_FEATURES).write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


@on_cpu()
def load(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    precision: Precision | None = None,
    backbone: nn.Module | None = None,
    kind: str | None = None,
) -> SequenceModel:
    """Read a model's folder, in evaluation mode.

    Args:
        folder: what :func:`save` wrote.
        device: where the model goes.
        backend: replaces the saved choice of backend.
        precision: replaces the saved one of the products.
        backbone: the foreign encoder, freshly built, if the model was saved with one.
        kind: the name of the model that it must be; None: any.

    Raises:
        CheckpointError: a missing, truncated or tampered file, a model of another kind or of a
            package that is not there, weights that do not fit the configuration or are not finite,
            or a vocabulary of another catalogue.
    """
    config = read_config(folder, kind)
    changes = {"backend": backend, "precision": precision}
    config = config.replace(**{name: new for name, new in changes.items() if new is not None})
    state = read_weights(folder / WEIGHTS)
    options = {} if backbone is None else {"backbone": backbone}
    # The shapes that the configuration asks for are compared before any memory is taken for them.
    features = read_features(folder)
    check_weights(skeleton(config, features, **options), state, folder / WEIGHTS)
    model = build(config, **options)
    if features is not None:
        model.join_features(features)
    model.load_state_dict(state)
    items = folder / ITEMS
    if items.exists():
        try:
            model.item_vocabulary = Vocabulary.from_json(read_mapping(items, largest=None))
        except ValueError as error:
            raise CheckpointError(f"{items}: {error}") from None
        if len(model.item_vocabulary) != config.num_items:
            raise CheckpointError(
                f"{items} names {len(model.item_vocabulary)} items; the model has "
                f"{config.num_items}: the two are not of one catalogue"
            )
    if (folder / memory.TENSORS).exists():
        tensors = read_weights(folder / memory.TENSORS)
        try:
            model.memory = memory.Memory.read(
                tensors, folder / memory.VALUES, config.num_items, config.memory_neighbours
            )
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    return model.to(device).eval()


def read_features(folder: Path) -> ItemFeatures | None:
    """What a model's folder knows of the items beside their ids; None where nothing.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    tensors, about = folder / FEATURES, folder / ABOUT_FEATURES
    if not (tensors.exists() or about.exists()):
        return None
    try:
        return ItemFeatures.read(read_weights(tensors), read_mapping(about, largest=None))
    except (ConfigError, DataError) as error:
        raise CheckpointError(f"{about}: {error}") from None


def skeleton(
    config: ModelConfig, features: ItemFeatures | None = None, **options: Any
) -> SequenceModel:
    """The model that a configuration describes, of shapes alone.

    Raises:
        CheckpointError: the features are of another catalogue, or the model takes none.
    """
    with torch.device("meta"), _NothingDrawn():
        model = build(config, **options)
    if features is not None:
        try:
            model.join_features(features)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
    return model


class _NothingDrawn(TorchFunctionMode):
    """Leaves tensors that a module would draw as they are.

    On the meta device there is nothing to draw, and torch loads its compiler to say so: three
    seconds of every command on a saved run.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def read_config(folder: Path, kind: str | None = None) -> ModelConfig:
    """The configuration in a model's folder; see :func:`load`."""
    try:
        values = read_mapping(folder / CONFIG)
        found = values.get("model", DEFAULT)
        if kind is not None and found != kind:
            raise ConfigError(
                f"a model of the kind {found!r}, not {kind!r}; load it with "
                "adarec_fast.models.pretrained.load, or by its own class"
            )
        return create_config(values)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from None


_Model = TypeVar("_Model", bound=SequenceModel)


class Pretrained(SequenceModel):
    """What a model's class mixes in to read and write folders by its own methods."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and, if known, ``items.json``.

        See :func:`save`.

        Example:
            >>> model.save_pretrained(folder / "model")
            >>> sorted(file.name for file in (folder / "model").iterdir())
            ['config.json', 'items.json', 'model.safetensors']
        """
        save(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        precision: Precision | None = None,
        backbone: nn.Module | None = None,
    ) -> _Model:
        """Load what :meth:`save_pretrained` wrote, in evaluation mode. See :func:`load`.

        Example:
            >>> model.save_pretrained(folder / "model")
            >>> again = af.ADARec.from_pretrained(folder / "model")
            >>> again.recommend(["sku-1"], k=3).items == model.recommend(["sku-1"], k=3).items
            True
        """
        if not isinstance(folder, (str, Path)):
            raise CheckpointError(f"folder={folder!r} must be the path of a model's folder")
        model: Any = load(
            Path(folder), device=device, backend=backend, precision=precision, backbone=backbone,
            kind=cls.config_type.system,
        )  # fmt: skip
        found: _Model = model
        return found


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module whose names and shapes it must match exactly.

    Raises:
        CheckpointError: as :func:`load`.
    """
    state = read_weights(path)
    check_weights(model, state, path)
    model.load_state_dict(state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all of them finite.

    Raises:
        CheckpointError: the file is missing, damaged, or holds a value that is not finite.
    """
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _LARGEST_HEADER:
            raise ValueError(f"its header is said to take {header} bytes")
        state = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    # A type of number that torch lacks is a KeyError or an AttributeError in safetensors.
    except (SafetensorError, OSError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from None
    for name, tensor in state.items():
        # Complex numbers and those of 8 bits and less are in no file of ours.
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() < 2):
            raise CheckpointError(f"{path}: {name} has the type {tensor.dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinity")
    return state


def check_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Compare names, shapes and dtypes with a module's, which may be on the meta device.

    Raises:
        CheckpointError: they differ; ``path`` is the file that ``state`` is from.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise CheckpointError(f"{path}: the tensor {name} is missing")
        found = state[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}, the configuration wants "
                f"{tensor.dtype} {list(tensor.shape)}"
            )
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise CheckpointError(f"{path}: unknown tensors {', '.join(unknown[:5])}")
