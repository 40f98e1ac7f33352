"""A warm model that answers requests: one user, or as many as come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import ops, ragged
from ..data import EvaluationBatch
from ..defaults import on_cpu
from ..histories import History, check_histories, check_k, is_packed, pack_lists
from ..models.base import Plan, SequenceModel
from ..models.evaluating import evaluating
from ..models.limits import Allowed, Limits
from ..models.own_ids import Question, UnknownItems
from ..ops import choose, synchronising
from ..ops._library import collecting, implementation, on_cuda
from ..ops.score_topk import best_of_several
from ..packed.score_topk import CHUNK_ELEMENTS
from ..precision import computing, ranking
from . import at_once
from .asking import Asking
from .graph import exportable as exportable
from .ranked import Ranking as Ranking
from .replays import Pinned, Request, Shape, buckets, packed, unpacked

_capturing = threading.Lock()


class _Replay(NamedTuple):
    """A bucket's requests on CUDA: what they are copied to, and, from the second on, the graph.

    Attributes:
        request: on the device, what the graph reads.
        graph: None before it was captured.
        whole: what the graph writes last: ``found``, packed.
        found: items, diagnostics and scores as the graph has them.
        names: of the diagnostics.
    """

    request: Request
    graph: torch.cuda.CUDAGraph | None = None
    whole: Tensor | None = None
    found: tuple[Tensor, ...] = ()
    names: tuple[str, ...] = ()


class Recommender(Asking):
    """Top-k recommendation with everything prepared that does not depend on the user.

    What is derived from the weights is computed here once (for few users on a CPU with the C++
    extension, a packed copy of them): make another recommender after training on. On CUDA each
    bucket of shapes becomes a graph on its second use; threads take turns at the graphs.

    It may be pickled, for a process that is spawned. One that is forked off computes on one thread,
    on a CPU; CUDA does not outlive a fork.

    Args:
        model: in whatever mode, which stays as it is; evaluated in evaluation mode.
        batch_size: users computed at once; more are taken in turn.
        screened: whether the rankings of a few users, where the C++ extension makes them, read an
            int8 copy of the item table first, D + 8 bytes an item, and in float32 those items alone
            that can be among the k best: the same rankings to the last bit. Without it they read
            the table, 4 D bytes an item.

    Raises:
        ValueError: ``batch_size`` is under 1, or ``screened`` no bool.

    Example:
        >>> recommender = af.Recommender(model)
        >>> len(recommender.recommend(["sku-1", "sku-9"], k=3).items)
        3
    """

    @on_cpu()
    def __init__(
        self, model: SequenceModel, *, batch_size: int = 1024, screened: bool = True
    ) -> None:
        if not isinstance(model, SequenceModel):
            raise ValueError(f"model is a {type(model).__name__}; it must be a SequenceModel")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be an int of at least 1")
        if not isinstance(screened, bool):
            raise ValueError(f"screened={screened!r} must be True or False")
        self.model = model = evaluating(model)
        self.batch_size, self.screened = batch_size, screened
        config, self._device = model.config, model.device
        weight = model.table() if model.by_products else torch.empty(
            0, dtype=torch.float32, device=self._device
        )
        self._items = weight.detach()
        with torch.inference_mode(), computing(config.precision, self._device.type):
            planned = model.plan() if model.by_products else None
        self._represent: Plan = model.explain if planned is None else planned
        self._memory = model.memory
        # None: the reference, by its op.
        self._topk: Callable[..., tuple[Tensor, Tensor]] | None = None
        op = "score_topk" if self._memory is None else "memory_topk"
        chosen = choose(op, config.backend, self._device.type, weight.dtype)
        if chosen != "reference":
            self._topk = implementation(op, chosen).fwd
        self._whole = None if planned is None else at_once.packed(model, self._items, screened)
        self._replays: dict[tuple[int, ...], _Replay] | None = None
        if on_cuda(self._device) and planned is not None:
            waits = synchronising(config.backend, "cuda", weight.dtype)
            if model.why_not_captured() is None and not waits:
                self._replays = {}
        # A graph reads and writes buffers of its own, one request at a time.
        self._turn = None if self._replays is None else threading.Lock()
        if self._device.type == "cuda":
            self._pinned = Pinned()
            self._pool = torch.cuda.graph_pool_handle()
            # torch.cuda.graph's own stream is on whatever device was current at its first use.
            self._stream = torch.cuda.Stream(self._device)

    def __repr__(self) -> str:
        model, config = self.model, self.model.config
        return (
            f"Recommender of {type(model).__name__}: {config.num_items:,} items"
            f"{'' if model.item_vocabulary is None else ' by their own ids'}, the last "
            f"{config.max_length:,} of a history{' and a memory' * (self._memory is not None)}, "
            f"on {self._device}"
        )

    def __reduce__(self) -> Any:
        # What is prepared is of this machine: another process, or a copy, prepares its own.
        return _prepared, (self.model, self.batch_size, self.screened)

    @overload
    def recommend(
        self, histories: History | Sequence[Sequence[int]], k: int = 20, *,
        exclude_seen: bool = True, exclude: Any = None, allow: Any = None, mask: Any = None,
        own_ids: Literal[False] | None = None, unknown_items: UnknownItems = "refuse",
    ) -> Ranking: ...
    @overload
    def recommend(
        self, histories: Any, k: int = 20, *, exclude_seen: bool = True, exclude: Any = None,
        allow: Any = None, mask: Any = None, own_ids: bool | None = None,
        unknown_items: UnknownItems = "refuse",
    ) -> Any: ...
    def recommend(
        self,
        histories: Any,
        k: int = 20,
        *,
        exclude_seen: bool = True,
        exclude: Any = None,
        allow: Any = None,
        mask: Any = None,
        own_ids: bool | None = None,
        unknown_items: UnknownItems = "refuse",
    ) -> Any:
        """The k best items of every user; what may not come is left out before the k are chosen.

        Text is the catalogue's own ids where the model has an ``item_vocabulary``, and ints are
        indices, 1..num_items, unless ``own_ids`` is True. Who asks in own ids is answered in them.

        Args:
            histories: oldest first. Indices: a list of lists, int64 ``[B, L]`` padded with 0, or
                a jagged pair (values ``[N]``, offsets ``[B+1]``), on any device. Own ids: one
                list, a list of lists, or a pandas or polars frame of users, items and times, whose
                columns are found as :func:`adarec_fast.load` finds them. Of long histories the
                last ``max_length`` items are read, and all of them count as seen.
            k: 1..num_items.
            exclude_seen: leave out what a history holds.
            exclude: further items to leave out: a list for all users, or one (it may be empty)
                for every user.
            allow: items that may come, and no others; likewise.
            mask: a rule of your own, bool, True where an item may come: ``[V]`` in the order of
                ``item_vocabulary.ids`` or ``[V+1]`` by index, or ``[B, ...]`` for every user.
            own_ids: whether ints are own ids, too; None: those of a frame are.
            unknown_items: own ids that nobody knows, in any of these: ``"refuse"``, or
                ``"ignore"`` and tell in the answer's ``ignored``.

        Returns:
            Of indices a :class:`Ranking`. Of own ids a :class:`Recommendations`, of one history a
            :class:`Recommendation`, and of a frame a frame of its kind: user, item, score, rank.

        Raises:
            ValueError: an empty history, an unknown id, a shape, a dtype or k out of range, or
                lists or a mask for another number of users.

        Example:
            >>> found = recommender.recommend(["sku-1", "sku-9"], k=2, allow=["sku-3", "sku-5"])
            >>> sorted(found.items)
            ['sku-3', 'sku-5']
            >>> recommender.recommend([[1, 9], [4]], k=5).items.shape
            torch.Size([2, 5])
        """
        plain = exclude is None and allow is None and mask is None and not own_ids
        if plain and self._whole is not None and unknown_items == "refuse":
            ranking = at_once.as_given(self._whole, histories, k, exclude_seen)
            if ranking is not None:
                return ranking
        with on_cpu():
            vocabulary = self.model.item_vocabulary
            question = Question.of(histories, vocabulary, own_ids, unknown_items)
            found = self._answered(question, k, exclude_seen, exclude, allow, mask)
            return question.answer(*found) if question.ids.own else found

    @torch.inference_mode()
    def _answered(
        self, question: Question, k: int, exclude_seen: bool, exclude: Any, allow: Any, mask: Any
    ) -> Ranking:
        config, histories = self.model.config, question.histories
        check_k(k, config.num_items)
        # Lists are checked where they are: reading a GPU's tensors would be dearer than the answer.
        given: History = (
            histories if is_packed(histories) else pack_lists(histories, torch.device("cpu"))
        )
        values, offsets = check_histories(given, None, num_items=config.num_items, crop=None)
        users = offsets.shape[0] - 1
        more, allowed = Limits.of(
            question.ids, users, config.num_items, exclude=exclude, allow=allow, mask=mask
        )
        size = self.batch_size
        if allowed is not None:
            size = min(size, max(1, CHUNK_ELEMENTS // (config.num_items + 1)))
        bounds = [*range(0, users, size), users]
        # All that the host must know is read before the histories go to the device.
        known = offsets.cpu()
        ends = known[bounds].tolist()
        crop = ends[-1] > 0 and int(ragged.lengths(known).amax()) > config.max_length
        values = values[: ends[-1]]
        if self._replays is None:  # what is replayed is padded where it is
            values, offsets = values.to(self._device), offsets.to(self._device)
        if users <= size:
            return self._chunk(values, offsets, k, exclude_seen, more, crop, allowed)
        parts = [
            self._chunk(
                values[ends[i] : ends[i + 1]],
                offsets[bounds[i] : bounds[i + 1] + 1] - ends[i],
                k,
                exclude_seen,
                None if more is None else ragged.rows(more, bounds[i], bounds[i + 1]),
                crop,
                allowed,
                bounds[i],
            )
            for i in range(len(bounds) - 1)
        ]
        return Ranking(
            torch.cat([part.items for part in parts]),
            torch.cat([part.scores for part in parts]),
            {n: torch.cat([part.diagnostics[n] for part in parts]) for n in parts[0].diagnostics},
        )

    def _chunk(
        self,
        values: Tensor,
        offsets: Tensor,
        k: int,
        exclude_seen: bool,
        more: ragged.Jagged | None,
        crop: bool,
        allowed: Allowed | None = None,
        first: int = 0,
    ) -> Ranking:
        """One batch of checked histories, from the request's user ``first`` on; ``crop``: some of
        the request's are too long."""
        seen, seen_offsets = values, offsets
        if not exclude_seen:
            seen, seen_offsets = values[:0], torch.zeros_like(offsets)
        if more is not None:
            further = ragged.Jagged(*(tensor.to(values.device) for tensor in more))
            seen, seen_offsets = ragged.joined(ragged.Jagged(seen, seen_offsets), further)
        if self._whole is not None and allowed is None:
            ranking = at_once.of_tensors(self._whole, values, offsets, seen, seen_offsets, k)
            if ranking is not None:
                return ranking
        limit = self.model.config.max_length
        if crop and offsets.shape[0] == 2:
            if values.shape[0] > limit:
                values = values[-limit:]
                offsets = torch.tensor([0, limit], device=values.device)
        elif crop:
            values, offsets = ragged.keep_last(values, offsets, limit)
        request = values, offsets, seen, seen_offsets
        if self._turn is not None and values.numel() and allowed is None:
            with self._turn:
                return self._replayed(request, k)
        values, offsets, seen, seen_offsets = (tensor.to(self._device) for tensor in request)
        return self._rank(values, offsets, seen, seen_offsets, k, allowed, first)

    def _among(self, allowed: Allowed | None, k: int) -> Tensor | None:
        """The items that may come, rising, where they are the same for all and the kernel can
        rank those alone.

        Copying their vectors costs less than a matrix of all scores.
        """
        by_products = self.model.by_products and self._memory is None
        if allowed is None or not allowed.shared or not by_products:
            return None
        chosen = allowed.rows(0, 1, self._device)[0].nonzero()[:, 0]
        return chosen if k <= chosen.shape[0] else None

    def _rank(
        self, values: Tensor, offsets: Tensor, seen: Tensor, seen_offsets: Tensor, k: int,
        allowed: Allowed | None = None, first: int = 0,
    ) -> Ranking:
        """``allowed``: what may come, of a request whose user ``first`` is the first one here."""
        among = self._among(allowed, k)
        user: Tensor | None = None
        told: Mapping[str, Tensor] = {}
        if self.model.by_products:
            user, told = self._represent(values, offsets)
        whole = user is None or (user.dim() == 3 and self._memory is not None)
        if user is not None and not whole and (allowed is None or among is not None):
            with ranking(self.model.config.precision, self._device.type):
                scores, items = (
                    self._best_products(user, values, offsets, seen, seen_offsets, k)
                    if among is None else self._best_among(among, user, seen, seen_offsets, k)
                )
            return Ranking(items, scores, told)
        read, without = ragged.Jagged(values, offsets), ragged.Jagged(seen, seen_offsets)
        if allowed is not None:
            scores, items = self.model._best(user, read, without, k, allowed, first)
            return Ranking(items, scores, told)
        all_scores = (
            self._own_scores(values, offsets) if user is None else self.model.score(user)
        )
        if self._memory is not None:
            self._memory.add_to(all_scores, values, offsets)
        return self._replayable(all_scores, *without, k, told)

    def _best_among(
        self, among: Tensor, user: Tensor, seen: Tensor, seen_offsets: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """Scores ``[B, k]`` and items, of some items alone; padding stands before them."""
        index = torch.cat([among.new_zeros(1), among])
        place = torch.zeros(self._items.shape[0], dtype=torch.int64, device=among.device)
        place[index] = torch.arange(index.shape[0], device=among.device)
        topk = ops.score_topk if user.dim() == 2 else best_of_several
        scores, found = topk(
            user, self._items[index], place[seen], seen_offsets, k,
            backend=self.model.config.backend,
        )  # fmt: skip
        return scores, index[found]

    def _best_products(
        self, user: Tensor, values: Tensor, offsets: Tensor, seen: Tensor, seen_offsets: Tensor,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        """Scores ``[B, k]`` and items of users ``[B, D']``, the memory's share included, or of
        ``[B, K, D']`` without a memory."""
        masked = seen, seen_offsets
        if user.dim() == 3:
            backend = self.model.config.backend
            return best_of_several(user, self._items, *masked, k, backend=backend)
        if self._memory is None:
            if self._topk is None:
                return ops.score_topk(user, self._items, *masked, k, backend="reference")
            return self._topk(user, self._items, *masked, k, float("-inf"))
        read = self._memory.reads()
        if self._topk is None:
            return ops.memory_topk(
                user, self._items, values, offsets, *masked, read, k,
                max_length=self.model.config.max_length, backend="reference",
            )  # fmt: skip
        rows, neighbours, weights, widest, *factors = read
        return self._topk(
            user, self._items, values, offsets, *masked, rows, neighbours, weights, widest, k,
            *factors,
        )  # fmt: skip

    def _own_scores(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Of a model that scores otherwise than by products."""
        return self.model.scores(EvaluationBatch.of_nobody(values, offsets))

    def _replayable(
        self, scores: Tensor, seen: Tensor, seen_offsets: Tensor, k: int,
        told: Mapping[str, Tensor],
    ) -> Ranking:
        """The best of scores ``[B, V+1]``, ties to the lower index, by steps whose shapes depend
        on no score: a graph may hold them, as it may not hold those of the model's own."""
        rows = ragged.sequence_ids(seen_offsets, seen.shape[0])
        # What belongs to nobody goes to column 0, which is no candidate.
        columns = torch.where(rows < scores.shape[0], seen, 0)
        scores[rows.clamp(max=scores.shape[0] - 1), columns] = float("-inf")
        scores[:, 0] = float("-inf")
        best = scores[:, 1:].sort(dim=1, descending=True, stable=True)
        return Ranking(best.indices[:, :k] + 1, best.values[:, :k], told)

    # ------------------------------------------------------------------ CUDA graphs

    def _replayed(self, request: tuple[Tensor, Tensor, Tensor, Tensor], k: int) -> Ranking:
        """``_rank`` at the bucket's shape: as it is at first, captured at the second time."""
        assert self._replays is not None
        values, offsets, seen, _ = request
        users = offsets.shape[0] - 1
        shape = buckets(users, values.shape[0], seen.shape[0])
        key = (*shape, k)
        known = self._replays.get(key)
        if known is None:
            words = torch.empty(shape.words, dtype=torch.int64, device=self._device)
            known = self._replays[key] = _Replay(Request.of(words, shape))
            self._put(known.request, request, shape)
            return self._rank(*known.request.tensors, k).first(users)
        self._put(known.request, request, shape)
        if collecting():  # there is no device, and a graph launches what this does
            return self._rank(*known.request.tensors, k).first(users)
        if known.graph is None:
            known = self._replays[key] = self._captured(known.request, k)
        assert known.graph is not None
        assert known.whole is not None
        known.graph.replay()
        # The next request overwrites the graph's own result.
        items, *told, scores = unpacked(known.whole.clone(), known.found)
        return Ranking(items, scores, dict(zip(known.names, told, strict=True))).first(users)

    def _put(
        self, target: Request, request: tuple[Tensor, Tensor, Tensor, Tensor], shape: Shape
    ) -> None:
        """Bring a request to the device, if it is not there, and to the bucket's shape."""
        if request[0].device.type == "cpu" and target.words.is_cuda:
            self._pinned.send(
                target.words, lambda words: Request.of(words, shape).fill(*request)
            )
        else:
            target.fill(*request)

    def _captured(self, request: Request, k: int) -> _Replay:
        graph = torch.cuda.CUDAGraph()
        # Results are copied out before the next replay, so that graphs can share memory.
        # Of two models in one process, as while a service reloads, one captures at a time, and
        # the other may allocate and read meanwhile.
        with _capturing, torch.cuda.graph(
            graph, self._pool, self._stream, capture_error_mode="thread_local"
        ):
            ranking = self._rank(*request.tensors, k)
            told = ranking.diagnostics
            # The widest numbers first, so that all lie aligned.
            found = ranking.items, *told.values(), ranking.scores
            whole = packed(found)
        return _Replay(request, graph, whole, found, tuple(told))


def _prepared(model: SequenceModel, batch_size: int, screened: bool) -> Recommender:
    return Recommender(model, batch_size=batch_size, screened=screened)
