"""BERT4Rec (Sun et al., CIKM 2019): a Transformer that reads both ways, trained by a cloze task.

Some items of a history are hidden behind a learnt vector, and their outputs predict them; to rank,
that vector stands behind the history in the place of the next item. With h the output at a hidden
place, u = LN(GELU(W h + b)) and the score of item i is u e_i + b_i: a full cross entropy over all
items, the mean over hidden places, which ``loss="original"`` and ``"full_ce"`` both name.

After FeiSun/BERT4Rec at 615eaf2. Deviations from that code:

* Trained on training items alone; there, the sequences hold the validation item, too.
* A history is one example an epoch, cut to its last ``max_length`` items, with places hidden anew
  in each; there, ten sets of places are drawn once, a further example hides the last item alone
  (``last_share`` is its share of the eleven), and of long histories there are several windows.
* No segment embedding, a constant that positions absorb; the softmax is over items alone.
* Weights are drawn from N(0, 0.02^2), not truncated. Adam is the trainer's: no decay unless asked
  for, bias correction. ``learning_rate_schedule="linear"`` with ``warmup_steps=100`` and a rate of
  1e-4 is the schedule there.

No attention looks at padding. On a CPU the layers are the op's; Triton's attention of all positions
is causal, so that on a GPU packed PyTorch runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops, ragged, rng
from ...config import ConfigError, ModelConfig
from ...data import Batch
from ...precision import computing
from ..base import LossOutput, UserGraph, initialise
from ..blocks.next_place import with_next
from ..blocks.system import configured
from ..embedded import EmbeddingModel
from ..encoders.sasrec import SASRecEncoder
from ..pretrained import Pretrained
from .cloze import hidden_items
from .config import BERT4RecConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed import Workers
    from ...distributed.share import Share
    from ..options import BERT4RecOptions


class BERT4Rec(Pretrained, EmbeddingModel):
    """A bidirectional encoder over packed histories, with the item table tied to the output.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`BERT4RecConfig`, e.g. ``num_items=12101, mask_share=0.2``.

    Attributes:
        mask: ``[D]``, what stands for a hidden item.
        item_bias: ``[V+1]``, b; its row 0, of padding, is never read.

    Raises:
        ConfigError: an unknown field, or a value out of range.

    Example:
        >>> model = BERT4Rec(num_items=9, hidden_size=8).eval()
        >>> model(torch.tensor([[1, 2, 3]])).shape  # a column more, for the biases
        torch.Size([1, 9])
    """

    config_type: ClassVar[type[ModelConfig]] = BERT4RecConfig
    config: BERT4RecConfig

    def __init__(
        self, config: BERT4RecConfig | None = None, **options: Unpack[BERT4RecOptions]
    ) -> None:
        config = configured(BERT4RecConfig, config, options)
        size = config.hidden_size
        super().__init__(config, size)
        self.backbone = SASRecEncoder(config, causal=False)
        self.transform = nn.Linear(size, size, dtype=torch.float32)
        self.transform_norm = nn.LayerNorm(size, eps=config.layer_norm_eps, dtype=torch.float32)
        self.mask = nn.Parameter(torch.empty(size, dtype=torch.float32))
        self.item_bias = nn.Parameter(torch.zeros(config.num_items + 1, dtype=torch.float32))
        self._add_noise_seed()
        generator = torch.Generator().manual_seed(config.seed)
        for child in self.children():
            initialise(child, generator)
        with torch.no_grad():
            self.mask.normal_(0.0, 0.02, generator=generator)
            self.item_embedding.weight[0].zero_()

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        """[u, 1] ``[B, D+1]`` of the place behind each history."""
        with computing(self.config.precision, self.device.type):
            values, hidden, offsets = with_next(values, offsets, self.config.max_length - 1)
            h = self._encode(values, hidden, offsets, self._next_seed(), last_only=True)
            return self._users(h)

    def table(self) -> Tensor:
        """[e_i, b_i] ``[V+1, D+1]``."""
        return torch.cat([self.item_embedding.weight, self.item_bias[:, None]], 1)

    def loss(self, batch: Batch, share: Share | None = None) -> LossOutput:
        """The mean cross entropy over hidden items, which is the part ``rec``; see
        :meth:`SequenceModel.loss`. ``batch.targets`` are the items ``[N]``."""
        config, offsets, targets = self.config, batch.offsets, batch.targets
        self._check_targets(batch.item_ids, offsets, targets)
        with computing(config.precision, self.device.type):
            place = None if share is None else share.place
            draws = rng.at_place(self.noise_seed, place)
            hidden = hidden_items(
                offsets, batch.item_ids.shape[0], draws,
                share=config.mask_share, last_share=config.last_share,
            )  # fmt: skip
            h = self._encode(batch.item_ids, hidden, offsets, self._next_seed(place))
            asked = hidden.nonzero()[:, 0]
            rec = ops.linear_cross_entropy(
                self._users(h[asked]), self.table(), targets[asked], backend=config.backend
            )
        if share is None:
            return LossOutput(rec, {"rec": rec.detach()})
        found, _ = share.of_whole_batch({"rec": rec}, {"rec": hidden.sum()})
        rec = found["rec"]
        return LossOutput(rec, {"rec": rec.detach()}, examples=share.examples)

    def _encode(
        self, values: Tensor, hidden: Tensor, offsets: Tensor, seed: Tensor | None, *,
        last_only: bool = False,
    ) -> Tensor:
        """h ``[N, D]``, or those of last places ``[B, D]``, with the mask for hidden items."""
        known = F.embedding(values.masked_fill(hidden, 0), self.item_embedding.weight, 0)
        embedded = torch.where(hidden[:, None], self.mask, known)
        places = None
        if self.config.positions == "left":
            places = ragged.positions(offsets, values.shape[0]).clamp(
                max=self.config.max_length - 1
            )  # what lies behind the last token is not read
        return self.backbone(
            embedded, offsets, seed=seed, backend=self.config.backend, places=places,
            last_only=last_only,
        )

    def _users(self, h: Tensor) -> Tensor:
        """[u, 1] of outputs ``[R, D]``: a one for the biases."""
        u = self.transform_norm(F.gelu(self.transform(h)))
        return F.pad(u, (0, 1), value=1.0)

    def user_graph(self) -> UserGraph:
        from .graph import BERT4RecGraph  # export's parts take a second to import

        return BERT4RecGraph(self)

    def split_items(self, workers: Workers) -> None:
        raise ConfigError(
            "shard_items=True: BERT4Rec's items have a bias each, which cannot be split; leave it "
            "off (--no-shard-items)"
        )

    def why_not_captured(self) -> str | None:
        return "how many items a cloze hides is read on the host"

    @property
    def leaves_some_unused(self) -> bool:
        return False
