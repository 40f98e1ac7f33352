"""ADARec on ICLRec, on ELCRec and on IOCRec (Table 3 of the paper), which states no equation.

Our reading: the encoder is that of the other system, ADC, HDA and HP-MoE read its output E, and h_u
ranks in the place of what ranks there; the other system's losses beside its ranking one stay, with
their weights, on its encoder's outputs:

    L = L_rec(h_u) + lambda_deno L_deno + lambda_cont L_cont + lambda_expl L_expl + L_aux

``prediction="backbone"`` is the other reading, the table's caption taken by its word ("ADARec's
augmentation with different intent-aware prediction layers"): ADC and HDA give the levels, the
other system ranks by the last vector of their mean, or of level T_u (``level_readout``), and there
is neither HP-MoE nor L_cont:

    L = L_rec(mean_k E_k) + lambda_deno L_deno + lambda_expl L_expl + L_aux

IOCRec's read-out takes the mean, or level T_u, of all positions for its local states, and ranks an
item by the best of K intents; its intents look at the whole history, so that examples are prefixes.

Views pass through the encoder alone. With depth fixed, without diffusion and HP-MoE this is ICLRec
or ELCRec, step by step, and with ``prediction="backbone"`` IOCRec. Else its global states and
intents are there for its contrast alone; positions count from the end, as ADARec's encoder has
them. That the paper's Table 1 figures of
ADARec on Beauty and Toys are those of its row on ELCRec here says that its headline model has these
losses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ... import ragged
from ...config import ConfigError
from ..adarec.config import ADARecConfig
from ..adarec.model import ADARec
from ..adarec.outputs import Parsed
from ..base import UserGraph
from ..blocks.auxiliary import Auxiliary
from ..blocks.system import configured
from ..elcrec.losses import LearnedIntents
from ..iclrec.losses import IntentContrast
from ..iocrec.intents import Places
from ..iocrec.losses import IntentionContrast
from .config import ADARecELCRecConfig, ADARecICLRecConfig, ADARecIOCRecConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import ADARecELCRecOptions, ADARecICLRecOptions, ADARecIOCRecOptions


class ADARecICLRec(ADARec):
    """ADARec on ICLRec's encoder, with ICLRec's contrasts.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`ADARecICLRecConfig`, e.g. ``num_items=12101, num_layers=1``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ADARecConfig]] = ADARecICLRecConfig
    config: ADARecICLRecConfig

    def __init__(
        self, config: ADARecICLRecConfig | None = None, **options: Unpack[ADARecICLRecOptions]
    ) -> None:
        super().__init__(configured(ADARecICLRecConfig, config, options))

    def _make_auxiliary(self) -> Auxiliary:
        return IntentContrast(self.config)


class ADARecELCRec(ADARec):
    """ADARec on ELCRec's encoder, with ELCRec's contrasts and centres.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`ADARecELCRecConfig`, e.g. ``num_items=12101, num_layers=1``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ADARecConfig]] = ADARecELCRecConfig
    config: ADARecELCRecConfig

    def __init__(
        self, config: ADARecELCRecConfig | None = None, **options: Unpack[ADARecELCRecOptions]
    ) -> None:
        super().__init__(configured(ADARecELCRecConfig, config, options))

    def _make_auxiliary(self) -> Auxiliary:
        return LearnedIntents(self.config)


class ADARecIOCRec(ADARec):
    """ADARec on IOCRec's encoder, with IOCRec's contrast of intents.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`ADARecIOCRecConfig`, e.g. ``num_items=12101, num_layers=3``.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ADARecConfig]] = ADARecIOCRecConfig
    config: ADARecIOCRecConfig
    auxiliary: IntentionContrast

    def __init__(
        self, config: ADARecIOCRecConfig | None = None, **options: Unpack[ADARecIOCRecOptions]
    ) -> None:
        super().__init__(configured(ADARecIOCRecConfig, config, options))

    def _make_auxiliary(self) -> Auxiliary:
        return IntentionContrast(self.config)

    def _parse(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None, *, everywhere: bool = False,
        **asked: Any,
    ) -> Parsed:
        config = self.config
        if config.prediction == "experts":
            return super()._parse(values, offsets, seed, everywhere=everywhere, **asked)
        # The weights of a history's positions are of all its states.
        parsed = super()._parse(values, offsets, seed, everywhere=True, **asked)
        places = Places.of(offsets, values.shape[0], config.max_length, from_left=False)
        found: Tensor = self.auxiliary.intents(
            parsed.user, self.item_embedding(values), places, seed, config.backend
        )
        last = ragged.last_tokens(offsets)
        user = found if config.pooling == "sum" else found[last]
        return parsed._replace(user=user, row_depth=parsed.row_depth[last])

    def user_graph(self) -> UserGraph:
        if self.config.prediction == "experts":
            return super().user_graph()
        raise ConfigError(
            "an export has one vector of a user, and prediction='backbone' has num_intents="
            f"{self.config.num_intents}; serve it with adarec-fast serve, or export another model"
        )

    @property
    def leaves_some_unused(self) -> bool:
        masks_alone = self.config.prediction == "backbone" and not self.config.lambda_contrast
        return masks_alone or super().leaves_some_unused
