"""One optimiser step, from stored images to new weights, without a word to the host.

Everything that a step depends on lies in tensors on the device, at the same place all the time:
which step of which epoch it is, the order of the images, the rates. So a step can be captured once
as a CUDA graph and replayed.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from training.augment import Augmentation, Draw, epoch_seed, shuffled
from training.batch_share import BatchShare
from training.freeze import Frozen
from training.mix import mixed_cross_entropy
from training.optim import Average, make_optimizer
from training.pace import Lead
from training.philox import Numbers, make_key
from training.pipeline import Source
from training.precision import autocast, is_sound
from training.processes import prepare
from training.recipe import OWN_GRAPHS, Recipe, Runtime
from training.schedule import learning_rate
from training.snapshot import (
    copied,
    generator_state,
    parameters_of,
    put_back,
    put_scale_back,
    remembered,
    renew_generator,
    scale_of,
    set_generator_state,
)
from zoo.errors import MachineError, first_line, is_out_of_memory
from zoo.session import require_compiler

WARM_UP_STEPS = 3  # before a capture, which must find every buffer in its place
DRAWN_AHEAD = 2048  # images for which a CPU draws at once, in half the time of 16 batches of 128


class Step:
    """A network with its optimiser, and the place in a run where the next step is taken.

    `place` holds epoch and step, `sums` the loss and the hits of the epoch so far. Each process
    takes its own rows of the batch that all of them share.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        runtime: Runtime,
        source: Source,
        mine: BatchShare,
        augmentation: Augmentation,
        accelerator: Accelerator,
        *,
        seed: int,
        steps: int,
        teacher: nn.Module | None = None,
    ) -> None:
        self.recipe, self.runtime, self.source = recipe, runtime, source
        self.teacher = teacher
        self.augmentation, self.accelerator = augmentation, accelerator
        self.seed, self.steps = seed, steps
        self.device, self.rank = accelerator.device, accelerator.process_index
        self.mine = mine
        self.plain = network
        self.frozen = Frozen(network) if recipe.freeze_backbone else None
        self.rate = torch.tensor(recipe.peak_lr, device=self.device)
        self.optimizer = make_optimizer(network, recipe, self.rate)
        self.network = prepare(
            network, accelerator, image_size=augmentation.preprocessing.image_size
        )
        self.masks = infinite_buffers(network, "model", "average")  # of `tensors`
        self.average = Average(network, recipe.ema_decay) if recipe.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.schedule = learning_rate(recipe, steps)

        self.epoch, self.step = 0, 0  # of the next step, as the host counts
        self.key = make_key(seed, self.device)
        self.place = torch.zeros(2, dtype=torch.int64, device=self.device)  # the same, here
        self.sums = torch.zeros(2, device=self.device)  # loss and share of hits, over the epoch
        self.loss = torch.zeros((), device=self.device)  # of the last step
        self.right = torch.zeros((), device=self.device)
        self.bad = torch.full((), -1, dtype=torch.int64, device=self.device)  # first unsound step
        self.offset = torch.arange(mine.count, device=self.device) + mine.first
        self.host_order = torch.zeros(len(source.labels), dtype=torch.int64)
        self.order = self.host_order.to(self.device)
        self.rates = torch.zeros(steps, device=self.device)

        self.drawn: dict[tuple[int, int], Draw] = {}  # by epoch and step, on a CPU
        self.lead = Lead(self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.capture_failure: str | None = None
        self.forward_loss: Callable[..., tuple[Tensor, Tensor]] = self._forward_loss
        self.augmented: Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]
        self.augmented = self._augmented
        if runtime.compile:
            require_compiler(self.device.type)
            mode = None if runtime.compile_mode == "default" else runtime.compile_mode
            self.forward_loss = torch.compile(self._forward_loss, dynamic=False, mode=mode)
            if self.device.type == "cuda":
                self.augmented = torch.compile(self._augmented, dynamic=False, fullgraph=True)

    @property
    def wants_graph(self) -> bool:
        """Whether the whole step is to be captured: on a GPU that one process has to itself."""
        wanted = self.runtime.cuda_graphs
        if self.device.type != "cuda" or wanted == "off":
            return False
        has_own = self.runtime.compile and self.runtime.compile_mode in OWN_GRAPHS
        return wanted == "on" or (self.accelerator.num_processes == 1 and not has_own)

    def begin(self, epoch: int) -> None:
        """Go to the first step of an epoch, counted from 1."""
        self.epoch, self.step = epoch, 0
        self.sums.zero_()
        self._load_epoch()
        torch.manual_seed(epoch_seed(self.seed, epoch, self.rank))

    def take(self) -> tuple[Tensor, Tensor]:
        """Take the next step; its loss and share of hits stay where they are until the next.

        Those of several processes are weighted: their mean is that of the batch.
        """
        self.source.bring(self._rows_on_host())
        if self.graph is None:
            self._take()
        else:
            self.graph.replay()
        self.lead.follow()
        self.step += 1
        return self.loss, self.right

    def train_mode(self) -> None:
        """Let the network learn; what is frozen stays as in inference."""
        self.network.train()
        if self.frozen is not None:
            self.frozen.keep_still()

    def capture(self) -> None:
        """Make a graph of the step; its tensors change as by a few steps.

        Raises:
            MachineError: the network does something that cannot be captured, and `cuda_graphs` is
                "on"; where it is "auto" the step then stays as it is, and `capture_failure` tells.
            RuntimeError: memory ran out.
        """
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self._take()
                self.place[1] -= 1
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        met: BaseException | None = None
        try:
            # Where its end fails, torch.cuda.graph leaves a stream of its own current.
            with torch.cuda.stream(here), torch.cuda.graph(graph):
                try:
                    self._take()
                except BaseException as first:
                    met = first
                    raise
        except RuntimeError as last:
            reason = met or last  # the end of a capture that failed fails too
            renew_generator(self.device)
            if not isinstance(reason, RuntimeError) or is_out_of_memory(reason):
                raise reason from None
            if self.runtime.cuda_graphs == "on":
                raise MachineError(
                    f"this step cannot be captured ({first_line(reason)}): "
                    "go on with --cuda-graphs off"
                ) from reason
            self.capture_failure = first_line(reason)
            self.optimizer.zero_grad(set_to_none=True)  # recorded, never computed
            return
        self.graph = graph

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on, where they are, by name."""
        found = {f"model.{name}": value for name, value in self.plain.state_dict().items()}
        if self.average is not None:
            values = self.average.module.state_dict()
            found |= {f"average.{name}": value for name, value in values.items()}
        found |= remembered(self.optimizer)
        return found | {"place": self.place, "sums": self.sums, "bad": self.bad}

    def state(self) -> dict[str, Tensor]:
        """A copy on the CPU of all that the next step depends on."""
        found = copied(self.tensors())
        scale, sums = scale_of(self.scaler), self._of_all(self.sums)
        return found | {"scaler": scale, "rng": self._rng(), "sums": sums}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned, in place.

        What the optimiser has made since, and the state does not know, is zeroed: so it begins.

        Raises:
            KeyError, ValueError, RuntimeError: the state is of another network or recipe.
        """
        state = state | {"sums": self._own_sums(state["sums"])}
        put_back(state, self.optimizer, self.tensors)
        put_scale_back(self.scaler, state["scaler"])
        self.epoch, self.step = self.place.tolist()
        if self.epoch:
            self._load_epoch()
        self._set_rng(state["rng"])

    def augment(self, batches: int) -> None:
        """Prepare the next batches of the epoch and drop them: what augmentation costs alone."""
        self.drawn.clear()
        here = self.step
        for ahead in range(batches):
            self.step = (here + ahead) % self.steps
            self.place[1] = self.step
            self.source.bring(self._rows_on_host())
            self.batch()
        self.step = here
        self.place[1] = here

    def batch(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Augmented images of the next step, as `Augmentation` gives them, of what was brought."""
        place = self.place[1] * self.recipe.batch_size + self.offset
        stored, labels = self.source.batch(self.order.index_select(0, place))
        drawn = self._draw_ahead() if self.device.type == "cpu" else None
        return self.augmented(stored, labels, self.key, self.place[0], place, drawn)

    def _take(self) -> None:
        images, labels, others, share = self.batch()
        self.rate.copy_(self.rates.index_select(0, self.place[1:]).squeeze(0))
        parts = self.runtime.accumulate
        if parts == 1:
            loss, right = self.forward_loss(images, labels, others, share)
            self.scaler.scale(loss).backward()
            loss = loss.detach()
        else:
            loss, right = self._accumulate(parts, images, labels, others, share)
        if self.recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(parameters_of(self.optimizer), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update((self.place[0] == 1) & (self.place[1] == 0))
        self.loss.copy_(loss)
        self.right.copy_(right)
        self.sums += torch.stack((self.loss, self.right))
        is_new = (self.bad < 0) & ~is_sound(self.loss, self.scaler)
        self.bad.copy_(torch.where(is_new, self.place[1], self.bad))
        self.place[1] += 1

    def _accumulate(self, parts: int, *batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Forward and backward of one part of the batch after another."""
        losses, hits = [], []
        chunks = [[None] * parts if t is None else t.chunk(parts) for t in batch]
        for number, chunk in enumerate(zip(*chunks, strict=True), start=1):
            quiet = number < parts and self.accelerator.num_processes > 1
            with self.accelerator.no_sync(self.network if quiet else None):
                loss, right = self.forward_loss(*chunk)
                self.scaler.scale(loss / parts).backward()
            losses.append(loss.detach())
            hits.append(right)
        return torch.stack(losses).mean(), torch.stack(hits).mean()

    def _draw_ahead(self) -> Draw:
        """What happens to the images of the next step, drawn for some steps at once.

        A small tensor takes a CPU as long as a larger one, and drawing has a hundred of them.
        """
        if (self.epoch, self.step) not in self.drawn:
            first, share = self.step, self.mine.count
            steps = torch.arange(first, min(self.steps, first + max(1, DRAWN_AHEAD // share)))
            place = (steps[:, None] * self.recipe.batch_size + self.offset).flatten()
            drawn = self.augmentation.draw(Numbers(key=self.key, epoch=self.place[0], place=place))
            parts = (drawn.of_rows(slice(row, row + share)) for row in range(0, len(place), share))
            self.drawn = {(self.epoch, first + k): part for k, part in enumerate(parts)}
        return self.drawn[self.epoch, self.step]

    def _augmented(
        self,
        stored: Tensor,
        labels: Tensor,
        key: Tensor,
        epoch: Tensor,
        place: Tensor,
        drawn: Draw | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        numbers = Numbers(key=key, epoch=epoch, place=place)
        return self.augmentation(stored, labels, numbers, drawn)

    def _forward_loss(
        self, images: Tensor, labels: Tensor, others: Tensor | None, share: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with autocast(self.recipe, self.device):
            logits = self.network(images)  # (B, K)
        logits = logits.float()
        smoothing = self.recipe.label_smoothing
        if others is None or share is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        else:
            loss = mixed_cross_entropy(logits, labels, others, share, label_smoothing=smoothing)
        if self.teacher is not None:
            loss = torch.lerp(loss, self._distillation(logits, images), self.recipe.distillation)
        right = (logits.detach().argmax(1) == labels).float().mean()
        weight = self.mine.weight
        return (loss, right) if weight == 1 else (loss * weight, right * weight)

    def _distillation(self, logits: Tensor, images: Tensor) -> Tensor:
        """Divergence from what the teacher says of the same images: (B, K), (B, C, S, S) -> ().

        Source:
            Hinton et al. 2015, arXiv:1503.02531, section 2, its gradients scaled by the square of
            the temperature.
        """
        assert self.teacher is not None
        with torch.no_grad(), autocast(self.recipe, self.device):
            wanted = self.teacher(images)
        t = self.recipe.temperature
        log_q, log_p = F.log_softmax(logits / t, dim=1), F.log_softmax(wanted.float() / t, dim=1)
        return t * t * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def _load_epoch(self) -> None:
        """Bring what the host knows of the epoch to the device."""
        self.host_order.copy_(shuffled(len(self.host_order), self.seed, self.epoch))
        self.order.copy_(self.host_order)
        first = (self.epoch - 1) * self.steps
        self.rates.copy_(torch.tensor([self.schedule(first + k) for k in range(self.steps)]))
        self.place.copy_(torch.tensor([self.epoch, self.step]))
        self.bad.fill_(-1)

    def _rows_on_host(self) -> Tensor:
        first = self.step * self.recipe.batch_size + self.mine.first
        return self.host_order[first : first + self.mine.count]

    def _rng(self) -> Tensor:
        """The state of every process's generator: (processes, n) uint8, on the CPU."""
        return self._of_all(generator_state(self.device))

    def _of_all(self, mine: Tensor) -> Tensor:
        """A row of each process, on the CPU."""
        if self.accelerator.num_processes == 1:
            return mine.detach().to("cpu", copy=True)[None]
        everybody: Tensor = self.accelerator.gather(mine[None].to(self.device))
        return everybody.cpu()

    def _own_sums(self, stored: Tensor) -> Tensor:
        """Those of this process, or, where there were others, its share of all."""
        rows = stored.view(-1, len(self.sums))  # older states hold those of the first alone
        is_same = len(rows) == self.accelerator.num_processes
        return rows[self.rank] if is_same else rows.mean(0)

    def _set_rng(self, states: Tensor) -> None:
        otherwise = epoch_seed(self.seed, self.epoch, self.rank)
        if self.rank >= len(states):  # there are more processes than there were
            torch.manual_seed(otherwise)
            return
        mine = states[self.rank].clone()  # torch reads the whole storage, whatever the offset
        set_generator_state(self.device, mine, otherwise=otherwise)


def infinite_buffers(network: nn.Module, *heads: str) -> frozenset[str]:
    """Buffers that hold infinity before any step, such as the mask of causal attention.

    Their names after each of `heads` and a dot.
    """
    names = [
        name
        for name, buffer in network.named_buffers()
        if buffer.is_floating_point() and not buffer.isfinite().all()
    ]
    return frozenset(f"{head}.{name}" for head in heads for name in names)
