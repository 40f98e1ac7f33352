"""Models by name: where configuration and class of each are, loaded when they are asked for.

Another package adds its own by an entry point of the group ``adarec_fast.models`` that names a
:class:`~adarec_fast.models.base.SequenceModel`; the entry point's name is the model's, and so is
``system`` of its configuration.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import ConfigError, ModelConfig

if TYPE_CHECKING:
    from .base import SequenceModel

GROUP = "adarec_fast.models"
DEFAULT = "adarec"


class Entry(NamedTuple):
    """A model of this package.

    Attributes:
        config, model: ``module:class`` below :mod:`adarec_fast.models`.
        summary: what it is, in a line.
        source: the paper.
    """

    config: str
    model: str
    summary: str
    source: str


BUILT_IN = {
    "adarec": Entry(
        "adarec.config:ADARecConfig",
        "adarec.model:ADARec",
        "adaptive depth, diffusion over a hierarchy of intents, a mixture of experts",
        "Cui et al., AAAI 2026",
    ),
    "sasrec": Entry(
        "sasrec.config:SASRecConfig",
        "sasrec.model:SASRec",
        "a causal Transformer over the history, with the full cross entropy or its own sampled one",
        "Kang and McAuley, ICDM 2018",
    ),
    "iclrec": Entry(
        "iclrec.config:ICLRecConfig",
        "iclrec.model:ICLRec",
        "SASRec, and contrasts of augmented histories and of clusters of users",
        "Chen et al., WWW 2022",
    ),
    "elcrec": Entry(
        "elcrec.config:ELCRecConfig",
        "elcrec.model:ELCRec",
        "ICLRec whose clusters are parameters, mixed into the views",
        "Liu et al., NeurIPS 2024",
    ),
    "iocrec": Entry(
        "iocrec.config:IOCRecConfig",
        "iocrec.model:IOCRec",
        "histories split into intents, the best of which ranks; intents of views are contrasted",
        "Li et al., WSDM 2023",
    ),
    "basrec": Entry(
        "basrec.config:BASRecConfig",
        "basrec.model:BASRec",
        "SASRec, and samples mixed of histories, their augmented copies and each other",
        "Dang et al., AAAI 2025",
    ),
    "pdrec": Entry(
        "pdrec.config:PDRecConfig",
        "pdrec.model:PDRec",
        "SASRec whose targets and negatives a diffusion of users' preferences weighs and chooses",
        "Ma et al., AAAI 2024",
    ),
    "bert4rec": Entry(
        "bert4rec.config:BERT4RecConfig",
        "bert4rec.model:BERT4Rec",
        "a Transformer that reads both ways, trained to fill in hidden items",
        "Sun et al., CIKM 2019",
    ),
    "caser": Entry(
        "caser.config:CaserConfig",
        "caser.model:Caser",
        "convolutions over the last few items",
        "Tang and Wang, WSDM 2018",
    ),
    "adarec-iclrec": Entry(
        "adarec_on.config:ADARecICLRecConfig",
        "adarec_on.model:ADARecICLRec",
        "ADARec on ICLRec's encoder, with ICLRec's contrasts",
        "Cui et al., AAAI 2026, Table 3",
    ),
    "adarec-elcrec": Entry(
        "adarec_on.config:ADARecELCRecConfig",
        "adarec_on.model:ADARecELCRec",
        "ADARec on ELCRec's encoder, with ELCRec's contrasts and centres",
        "Cui et al., AAAI 2026, Table 3",
    ),
    "adarec-iocrec": Entry(
        "adarec_on.config:ADARecIOCRecConfig",
        "adarec_on.model:ADARecIOCRec",
        "ADARec on IOCRec's encoder, with IOCRec's contrast of intents",
        "Cui et al., AAAI 2026, Table 3",
    ),
    "globaldiff": Entry(
        "globaldiff.config:GlobalDiffConfig",
        "globaldiff.model:GlobalDiff",
        "a diffusion over all items behind a frozen encoder, whose ranking it is fused with",
        "Luo et al., AAAI 2025",
    ),
    "diffdiv": Entry(
        "diffdiv.config:DiffDivConfig",
        "diffdiv.model:DiffDiv",
        "generates the next item's vector by guided diffusion; our reconstruction, on DreamRec",
        "Cai et al., SIGIR 2025",
    ),
    "counting": Entry(
        "counting.config:CountingConfig",
        "counting.model:Counting",
        "items seen together in a window, summed over a history that fades; fitted in seconds",
        "",
    ),
    "markov": Entry(
        "counting.config:MarkovConfig",
        "counting.model:MarkovChain",
        "what most often follows the last item; fitted in seconds",
        "",
    ),
    "popularity": Entry(
        "counting.config:PopularityConfig",
        "counting.model:Popularity",
        "the same most popular items for everybody",
        "",
    ),
}


def names() -> list[str]:
    """All models that can be asked for, those of this package first."""
    return [*BUILT_IN, *(name for name in sorted(_outside()) if name not in BUILT_IN)]


def listed() -> list[dict[str, str]]:
    """``name``, ``summary`` and ``source`` of each of them; what cannot be imported says so."""
    found = []
    for name in names():
        if name in BUILT_IN:
            summary, source = BUILT_IN[name].summary, BUILT_IN[name].source
        else:
            try:
                model = _from_outside(name)
                summary = (model.__doc__ or "").strip().partition("\n")[0]
                source = model.source
            except ConfigError as error:
                summary, source = str(error), ""
        found.append({"name": name, "summary": summary, "source": source})
    return found


def config_type(name: str) -> type[ModelConfig]:
    """The configuration of a model; of one of this package, without importing torch.

    Raises:
        ConfigError: there is no such model, or its entry point does not lead to one.
    """
    if name in BUILT_IN:
        found: type[ModelConfig] = _load(BUILT_IN[name].config)
        return found
    return _from_outside(name).config_type


def model_type(name: str) -> type[SequenceModel]:
    """The class of a model.

    Raises:
        ConfigError: as :func:`config_type`.
    """
    if name in BUILT_IN:
        found: type[SequenceModel] = _load(BUILT_IN[name].model)
        return found
    return _from_outside(name)


def create_config(values: Mapping[str, Any]) -> ModelConfig:
    """A configuration from its fields; ``model`` names the kind, an ADARec without it.

    Raises:
        ConfigError: there is no such model, an unknown field, or a value out of range.
    """
    fields = dict(values)
    name = fields.pop("model", DEFAULT)
    if not isinstance(name, str):
        raise ConfigError(f"model={name!r} must be the name of a model: {', '.join(names())}")
    kind = config_type(name)
    try:
        return kind.create(**fields)
    except ConfigError as error:
        if name == DEFAULT:
            raise
        raise ConfigError(f"model {name}: {error}") from None


def described(config: ModelConfig) -> dict[str, Any]:
    """Inverse of :func:`create_config`: JSON-able, with the kind of model."""
    return {"model": config.system, **config.to_dict()}


def build(config: ModelConfig, **options: Any) -> SequenceModel:
    """A fresh model of a configuration, in float32; ``options`` go to its class."""
    with _float32_default():
        return model_type(config.system)(config, **options)


@contextlib.contextmanager
def _float32_default() -> Iterator[None]:
    """For the modules of other packages, which take torch's default; ours name their own."""
    import torch

    before = torch.get_default_dtype()
    if before is torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def _outside() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def _from_outside(name: str) -> type[SequenceModel]:
    points = _outside()
    if name not in points:
        known = [*BUILT_IN, *points]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"model={name!r} is not known{hint or ';'} there are {', '.join(known)}, and a package "
            f"adds its own by an entry point of the group {GROUP}"
        )
    point = points[name]
    package = point.dist.name if point.dist is not None else "?"
    where = f"model={name!r}: the entry point {point.value!r} of the package {package}"
    try:
        found = point.load()
    except Exception as error:  # whatever another package's import may raise
        raise ConfigError(
            f"{where} cannot be imported: {type(error).__name__}: {error}; mend or remove that "
            "package, or choose another model"
        ) from error
    from .base import SequenceModel

    if not (isinstance(found, type) and issubclass(found, SequenceModel)):
        raise ConfigError(f"{where} is no class derived from adarec_fast.models.base.SequenceModel")
    kind = getattr(found, "config_type", None)
    if not (isinstance(kind, type) and issubclass(kind, ModelConfig) and kind.system == name):
        raise ConfigError(
            f"{where} must have a config_type, derived from adarec_fast.config.ModelConfig, whose "
            f"system is {name!r}; it has {kind!r}"
        )
    return found
