"""A warm model that answers requests: one user, or as many as come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops, ragged, rng
from .histories import History, check_histories, pack_lists
from .model import ADARec
from .modules import SASRecEncoder, TransformerLayer
from .ops import choose, synchronising
from .ops._library import implementation

Parse = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Ranking(NamedTuple):
    """The k best items of B users.

    Attributes:
        items: int64 ``[B, k]``.
        scores: ``[B, k]``, falling; -inf behind the last item that may be recommended.
        depth: int64 ``[B]``, T_u.
    """

    items: Tensor
    scores: Tensor
    depth: Tensor


class Recommender:
    """Top-k recommendation with everything prepared that does not depend on the user.

    The weights are read where they are, what is derived from them (biases of levels and of
    lengths) is computed here once: make another recommender after training on. On CUDA each
    bucket of shapes becomes a graph on its second use.

    Args:
        model: put into evaluation mode.
        batch_size: users computed at once; more are taken in turn.

    Raises:
        ValueError: ``batch_size`` is under 1.
    """

    def __init__(self, model: ADARec, *, batch_size: int = 1024) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.model = model.eval()
        self.batch_size = batch_size
        config, weight = model.config, model.item_embedding.weight
        self._device, self._items = weight.device, weight.detach()
        with torch.inference_mode():
            self._parse: Parse = _Plan(model) if _Plan.suits(model) else self._general
        chosen = choose("score_topk", config.backend, self._device.type, weight.dtype)
        self._topk = None
        if chosen != "reference":
            self._topk = implementation("score_topk", chosen).fwd
        self._nothing = torch.zeros(0, dtype=torch.int64, device=self._device)
        self._graphs: dict[tuple[int, ...], _Graph | None] | None = None
        if self._device.type == "cuda" and isinstance(self._parse, _Plan) and not synchronising(
            config.backend, "cuda", weight.dtype
        ):
            self._graphs = {}
            self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def recommend(
        self,
        histories: History | Sequence[Sequence[int]],
        k: int = 20,
        *,
        exclude_seen: bool = True,
        exclude: Sequence[Sequence[int]] | None = None,
    ) -> Ranking:
        """The k best items of every user.

        Args:
            histories: item ids, oldest first: a list of lists, int64 ``[B, L]`` padded with 0, or
                a jagged pair (values ``[N]``, offsets ``[B+1]``), on any device. Of long ones the
                last ``max_length`` items are read, and all of them count as seen.
            k: 1..num_items.
            exclude_seen: leave out what a history holds.
            exclude: further items to leave out, a list (it may be empty) for every user.

        Raises:
            ValueError: an empty history, an unknown id, a shape, a dtype or k out of range, or
                an ``exclude`` for another number of users.
        """
        config = self.model.config
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= config.num_items:
            raise ValueError(f"k={k!r} must lie in 1..{config.num_items}, the number of items")
        if not isinstance(histories, (Tensor, tuple)):
            # Checked where they are: reading a GPU's tensors would be dearer than the answer.
            histories = pack_lists(histories, torch.device("cpu"))
        values, offsets = check_histories(
            histories, None, num_items=config.num_items, crop=None
        )
        users = offsets.shape[0] - 1
        bounds = [*range(0, users, self.batch_size), users]
        # All that the host must know is read before the histories go to the device.
        ends = offsets[bounds].tolist()
        crop = ends[-1] > 0 and int(ragged.lengths(offsets).amax()) > config.max_length
        more = None
        if exclude is not None:
            more = _packed_exclusions(exclude, users, config.num_items)
        values, offsets = values[: ends[-1]].to(self._device), offsets.to(self._device)
        if users <= self.batch_size:
            return self._chunk(values, offsets, k, exclude_seen, more, crop)
        parts = [
            self._chunk(
                values[ends[i] : ends[i + 1]],
                offsets[bounds[i] : bounds[i + 1] + 1] - ends[i],
                k,
                exclude_seen,
                None if more is None else _rows(more, bounds[i], bounds[i + 1]),
                crop,
            )
            for i in range(len(bounds) - 1)
        ]
        return Ranking(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _chunk(
        self,
        values: Tensor,
        offsets: Tensor,
        k: int,
        exclude_seen: bool,
        more: ragged.Jagged | None,
        crop: bool,
    ) -> Ranking:
        """One batch of checked histories; ``crop``: some of the request's are too long."""
        seen, seen_offsets = values, offsets
        if not exclude_seen:
            seen, seen_offsets = self._nothing, torch.zeros_like(offsets)
        if more is not None:
            further = (tensor.to(self._device) for tensor in more)
            seen, seen_offsets = _joined(seen, seen_offsets, *further)
        limit = self.model.config.max_length
        if crop and offsets.shape[0] == 2:
            if values.shape[0] > limit:
                values = values[-limit:]
                offsets = torch.tensor([0, limit], device=self._device)
        elif crop:
            values, offsets = ragged.keep_last(values, offsets, limit)
        if self._graphs is not None and values.numel():
            return self._replayed(values, offsets, seen, seen_offsets, k)
        return self._rank(values, offsets, seen, seen_offsets, k)

    def _rank(
        self, values: Tensor, offsets: Tensor, seen: Tensor, seen_offsets: Tensor, k: int
    ) -> Ranking:
        user, depth = self._parse(values, offsets)
        if self._topk is None:
            scores, items = ops.score_topk(
                user, self._items, seen, seen_offsets, k, backend="reference"
            )
        else:
            scores, items = self._topk(user, self._items, seen, seen_offsets, k, float("-inf"))
        return Ranking(items, scores, depth)

    def _general(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Any model, through its ``forward``."""
        output = self.model((values, offsets))
        return output.user, output.depth

    # ------------------------------------------------------------------ CUDA graphs

    def _replayed(
        self, values: Tensor, offsets: Tensor, seen: Tensor, seen_offsets: Tensor, k: int
    ) -> Ranking:
        """``_rank`` at the bucket's shape: as it is at first, captured at the second time."""
        assert self._graphs is not None
        users = offsets.shape[0] - 1
        shape = buckets(users, values.shape[0], seen.shape[0])
        key = (*shape, k)
        graph = self._graphs.get(key)
        if graph is None:
            inputs = padded_request(values, offsets, seen, seen_offsets, shape)
            if key not in self._graphs:
                self._graphs[key] = None
                return Ranking(*(tensor[:users] for tensor in self._rank(*inputs, k)))
            captured = torch.cuda.CUDAGraph()
            # Results are copied out before the next replay, so that graphs can share memory.
            with torch.cuda.graph(captured, pool=self._pool):
                found = self._rank(*inputs, k)
            graph = self._graphs[key] = _Graph(captured, inputs, found)
        else:
            fresh = padded_request(values, offsets, seen, seen_offsets, shape)
            for target, source in zip(graph.inputs, fresh, strict=True):
                target.copy_(source)
        graph.graph.replay()
        # The next request overwrites the graph's own result.
        return Ranking(*(tensor[:users].clone() for tensor in graph.found))


def _packed_exclusions(
    exclude: Sequence[Sequence[int]], users: int, num_items: int
) -> ragged.Jagged:
    """The checked lists of items to leave out, packed on the CPU."""
    if len(exclude) != users:
        raise ValueError(f"exclude has {len(exclude)} lists for {users} users; give one for each")
    values, offsets = pack_lists(exclude, torch.device("cpu"))
    if values.numel():
        low, high = int(values.min()), int(values.max())
        if low < 1 or high > num_items:
            wrong = low if low < 1 else high
            raise ValueError(f"exclude: item id {wrong} is outside the catalogue, 1..{num_items}")
    return ragged.Jagged(values, offsets)


def _rows(jagged: ragged.Jagged, start: int, stop: int) -> ragged.Jagged:
    """The sequences ``start .. stop - 1`` of a batch on the CPU."""
    low, high = jagged.offsets[[start, stop]].tolist()
    return ragged.Jagged(jagged.values[low:high], jagged.offsets[start : stop + 1] - low)


def _joined(
    first: Tensor, first_offsets: Tensor, second: Tensor, second_offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Each user's two lists as one, packed."""
    offsets = first_offsets + second_offsets
    values = first.new_empty(first.shape[0] + second.shape[0])
    for source, own, before in (
        (first, first_offsets, second_offsets[:-1]),
        (second, second_offsets, first_offsets[1:]),
    ):
        user = ragged.sequence_ids(own, source.shape[0])
        place = torch.arange(source.shape[0], device=source.device) + before[user]
        values[place] = source
    return values, offsets


class _Ranker(nn.Module):
    """What :func:`exportable` returns."""

    def __init__(self, model: ADARec, k: int) -> None:
        super().__init__()
        self.model, self.k = model, k

    def forward(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        user = self.model((values, offsets)).user
        scores, items = ops.score_topk(
            user, self.model.item_embedding.weight, values, offsets, self.k,
            backend=self.model.config.backend,
        )
        return items, scores


def exportable(model: ADARec, *, k: int = 20) -> nn.Module:
    """The inference graph alone, for ``torch.export`` and ``torch.compile(fullgraph=True)``.

    Args:
        model: put into evaluation mode.
        k: items a user, 1..num_items.

    Returns:
        A module from values ``[N]`` and offsets ``[B+1]``, int64, of histories of at most
        ``max_length`` items, to unseen items ``[B, k]`` and their scores. It checks nothing that
        would have to be read from the tensors. N and B may be dynamic, though torch exports B = 1
        apart from greater ones. An exported program needs this package imported, since its ops
        are the package's.
    """
    return _Ranker(model.eval(), k).eval()


class _Graph(NamedTuple):
    """A captured request, the tensors it reads and those it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    found: Ranking


def buckets(users: int, tokens: int, seen: int) -> tuple[int, int, int]:
    """Shapes that a request is padded to, each the next power of two: users, tokens, seen items.

    Users that only fill up have a history of one token each.
    """
    rows = 1 << (users - 1).bit_length()
    return (
        rows,
        1 << (tokens + rows - users - 1).bit_length(),
        1 << max(seen - 1, 0).bit_length(),
    )


def padded_request(
    values: Tensor,
    offsets: Tensor,
    seen: Tensor,
    seen_offsets: Tensor,
    shape: tuple[int, int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Histories and seen items at a bucket's shape; item 1 stands for everybody who is not there.

    Reads nothing on the host.
    """
    missing = shape[0] + 1 - offsets.shape[0]
    more = torch.arange(1, missing + 1, device=offsets.device)
    return (
        F.pad(values, (0, shape[1] - values.shape[0]), value=1),
        torch.cat([offsets, offsets[-1:] + more]),
        F.pad(seen, (0, shape[2] - seen.shape[0]), value=1),
        torch.cat([seen_offsets, seen_offsets[-1:].expand(missing)]),
    )


class _Plan:
    """From item ids to h in evaluation mode: the model's ops with their arguments bound once.

    For one user the ops themselves take a third of the time that modules, checks and dispatch
    take; here the histories were checked and the weights are known. The numbers are those of
    ``ADARec.forward`` (tested).
    """

    def __init__(self, model: ADARec) -> None:
        config, encoder = model.config, model.backbone
        assert isinstance(encoder, SASRecEncoder)
        device, dtype = model.item_embedding.weight.device, model.item_embedding.weight.dtype
        self._backend, self._device, self._dtype = config.backend, device, dtype
        self._encoder, self._config = encoder, config
        self._items = model.item_embedding.weight.detach()
        # Row max_length - n of this one belongs to the first token of n. Not for a graph, whose
        # input has rows behind the last token.
        self._alone = device.type == "cpu"
        self._positions = encoder.position.weight.detach().flip(0)
        self._norm = (config.hidden_size,), encoder.norm.weight, encoder.norm.bias, encoder.eps
        self._layer = self._op("encoder_layer")
        self._layers = [self._layer_arguments(layer) for layer in encoder.layers]
        controller = model.depth_controller
        lengths = torch.arange(config.max_length + 1, device=device)
        self._length_bias = controller.length_bias(lengths, dtype)
        self._controller = self._op("depth_controller")
        self._controller_weights = (
            controller.w_ih, controller.w_hh, controller.b_hh, controller.w_out, controller.b_out,
            config.max_length,
        )  # fmt: skip
        table, denoiser, router = model.level_embedding.weight, model.denoiser, model.router
        self._trajectory = self._op("hda_trajectory")
        self._denoiser_weights = (
            denoiser.alpha_bar, denoiser.w1, denoiser.level_bias(table), denoiser.w2, denoiser.b2,
            None, None,
        )  # fmt: skip
        self._fine = self._layer_arguments(model.fine_expert)
        coarse = model.coarse_expert
        if isinstance(coarse, TransformerLayer):
            self._coarse, self._coarse_weights = self._layer, self._layer_arguments(coarse)
        else:
            self._coarse = self._op("mlp_expert")
            self._coarse_weights = (
                *coarse.weights(), coarse.eps, 0.0, None, rng.STREAM_COARSE_MLP,
            )  # fmt: skip
        self._pool = self._op("level_pool")
        self._aggregate = self._op("moe_aggregate")
        self._router_weights = router.weights(table)
        self._content = router.content
        # m_k of levels up to the depth; those beyond are not read.
        self._mass = torch.ones(config.num_levels, 1, dtype=dtype, device=device)
        self._finish = model._finish
        self._fused = None
        if config.fused_trajectory:
            self._fused = self._op("fused_trajectory")
            self._fused_inputs = (
                denoiser.alpha_bar, *denoiser.weights(table), *model.fine_expert.weights(),
                *coarse.weights(), *self._router_weights, None, None, None, config.num_heads,
                config.layer_norm_eps, 0.0, 0.0, router.content, False, True, config.max_length,
            )  # fmt: skip

    @staticmethod
    def suits(model: ADARec) -> bool:
        """Whether this is the paper's whole model on the built-in encoder, run by our ops."""
        config, weight = model.config, model.item_embedding.weight
        names = (
            "encoder_layer", "depth_controller", "hda_trajectory", "mlp_expert", "level_pool",
            "moe_aggregate", *(("fused_trajectory",) if config.fused_trajectory else ()),
        )  # fmt: skip
        return (
            isinstance(model.backbone, SASRecEncoder)
            and (config.depth, config.diffusion, config.moe) == ("adaptive", True, True)
            and config.evaluation_samples == 0
            and all(
                choose(name, config.backend, weight.device.type, weight.dtype) != "reference"
                for name in names
            )
        )

    def _op(self, name: str) -> Callable[..., Any]:
        chosen = choose(name, self._backend, self._device.type, self._dtype)
        return implementation(name, chosen).fwd

    def _layer_arguments(self, layer: nn.Module) -> tuple[Any, ...]:
        """All that follows x, offsets and depth, less ``last_only`` and ``max_length``."""
        assert isinstance(layer, TransformerLayer)
        return (*layer.weights(), layer.heads, layer.eps, 0.0, 0.0, None, layer.stream)

    def __call__(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """h ``[B, D]`` and T_u ``[B]`` of packed histories of at most ``max_length`` items."""
        longest, tokens = self._config.max_length, values.shape[0]
        x = F.embedding(values, self._items)
        if self._alone and offsets.shape[0] == 2:
            x = x + self._positions[longest - tokens :]
        else:
            x = x + self._encoder.positions(offsets, tokens)
        x = F.layer_norm(x, *self._norm)[None]
        for weights in self._layers:
            x = self._layer(x, offsets, None, *weights, False, longest)
        embeddings = x[0]
        bias = self._length_bias[offsets[1:] - offsets[:-1]]
        logits, _ = self._controller(embeddings, offsets, bias, *self._controller_weights)
        depth = logits.argmax(-1)
        mass = self._mass.expand(-1, depth.shape[0]).contiguous()
        if self._fused is not None:
            user, *_ = self._fused(embeddings, offsets, depth, mass, *self._fused_inputs)
        else:
            user = self._stages(embeddings, offsets, depth, mass)
        if self._config.residual:
            user = self._finish(user, embeddings[ragged.last_tokens(offsets)])
        return user, depth

    def _stages(
        self, embeddings: Tensor, offsets: Tensor, depth: Tensor, mass: Tensor
    ) -> Tensor:
        """From E to h, an op after the other."""
        longest = self._config.max_length
        x0, _ = self._trajectory(embeddings, offsets, depth, *self._denoiser_weights)
        fine = self._layer(x0, offsets, depth, *self._fine, True, longest)
        if self._coarse is self._layer:
            coarse = self._layer(x0, offsets, depth, *self._coarse_weights, True, longest)
        else:
            coarse = self._coarse(x0, offsets, depth, *self._coarse_weights, True)
        pooled = self._pool(x0, offsets, depth, False) if self._content else None
        user, *_ = self._aggregate(
            fine, coarse, pooled, depth, mass, *self._router_weights
        )
        return user
