"""A network with exits: the body untouched, heads beside it."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..nested.cost import StageCost
from .costs import count_costs
from .inputs import Inputs
from .modes import evaluating
from .paused import paused_pass
from .program import Program, build_program
from .taps import Taps
from .values import Read, tensor_of

_log = logging.getLogger(__name__)
HEADS = "exits"  # the prefix of the heads' names


class ExitNetwork(nn.Module):
    """A body with exits; made by :func:`anynest.add_exits`.

    It has the body's parameters, buffers and children under their own names, and the heads as
    ``exits.1``, ``exits.2``, ... by stage. The last stage is the body's own output.

    In eval mode ``stages`` runs the segments of the exported graph; in training mode, and where the
    body cannot be exported, a forward pass that pauses at each exit.

    Attributes:
        exits: the heads by stage number.
        exit_names: the names that the exits were given, in the order of execution.
        num_classes: K, or None if the outputs are not class logits.
        in_channels: C of image inputs ``[B, C, H, W]``, otherwise None.
    """

    def __init__(
        self,
        body: nn.Module,
        call: nn.Module,
        taps: Taps,
        inputs: Inputs,
        output: Read,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        # one dict each, so that moving or casting one moves the other
        self._parameters = body._parameters
        self._buffers = body._buffers
        self._non_persistent_buffers_set = body._non_persistent_buffers_set
        self._modules.update(body._modules)
        self.exits = taps.heads
        self.training = body.training
        self._plain("_body", body)
        self._plain("_call", call)  # the body, or what torch.compile made of it
        self._taps = taps
        self._inputs = inputs
        self._output = output
        self.num_classes = num_classes
        self.exit_names = tuple(point.name for point in taps.points)
        first = inputs.example[0]
        is_image = len(inputs.names) == 1 and first.dim() == 4 and first.is_floating_point()
        self.in_channels = first.shape[1] if is_image else None
        self._program: Program | str | None = None  # a string: why there is none
        self._lock = threading.RLock()

    def _plain(self, name: str, value: Any) -> None:
        """Set an attribute that is no child."""
        self.__dict__[name] = value

    # -- structure --------------------------------------------------------------------------------
    @property
    def body(self) -> nn.Module:
        """The network that the exits were added to; calling it evaluates no head."""
        body: nn.Module = self.__dict__["_body"]
        return body

    @property
    def num_stages(self) -> int:
        """S: the exits and the body's own output."""
        return len(self.exit_names) + 1

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs in their order."""
        return self._inputs.names

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """The example given to ``add_exits``, in the order of ``input_names``."""
        return self._inputs.example_like(self.body)

    def __setattr__(self, name: str, value: Any) -> None:
        """Replace a child or parameter of the body in the body, too."""
        super().__setattr__(name, value)
        body = self.__dict__.get("_body")
        if body is not None and name != HEADS and name in body._modules:
            setattr(body, name, value)

    def get_submodule(self, target: str) -> nn.Module:
        """A module by its name in ``named_modules``, even where a method has the name."""
        if not target or target.split(".")[0] == HEADS:
            return super().get_submodule(target)
        return self.body.get_submodule(target)

    def train(self, mode: bool = True) -> ExitNetwork:
        """Training or eval mode of the body and the heads."""
        super().train(mode)
        self.body.training = self.training
        return self

    def extra_repr(self) -> str:
        return f"{type(self.body).__name__} with exits after {', '.join(self.exit_names)}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the exported graph, which is made again when it is needed."""
        state = dict(self.__dict__)
        state["_program"] = self._program if isinstance(self._program, str) else None
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> ExitNetwork:
        """A copy with parameters of its own."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    # -- evaluation -------------------------------------------------------------------------------
    def forward(self, *inputs: Tensor, **named: Tensor) -> list[Tensor]:
        """All S outputs of one pass through the body."""
        return self._run(self._inputs.bind(inputs, named), None)

    def _run(
        self, tensors: Sequence[Tensor], emit: Callable[[int, Tensor], None] | None
    ) -> list[Tensor]:
        outputs, value = self._taps.run(
            lambda: self._inputs.call(self.__dict__["_call"], tensors), emit
        )
        what = "the body's output (output=)"
        outputs.append(tensor_of(value, self._output, what, first=False))
        return outputs

    def stages(self, *inputs: Tensor, **named: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (1, output), (2, output), ...; each is computed when it is asked for."""
        state = self._inputs.bind(inputs, named)
        program = self._current_program()
        if program is None or not program.accepts(state):
            yield from self._paused_stages(state)
            return
        for stage, segment in enumerate(program.segments, 1):
            output, *state = segment(*state)
            yield stage, output

    def _paused_stages(self, tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Stages of a forward pass that pauses at each exit."""
        outcomes = paused_pass(lambda emit: self._run(tensors, emit)[-1])
        try:
            for outcome in outcomes:
                yield outcome if isinstance(outcome, tuple) else (self.num_stages, outcome)
        finally:
            outcomes.close()

    def segments(self) -> Sequence[nn.Module]:
        """S modules ``segment(*state) -> (output, *state)`` that compute the stages in eval mode.

        The first state is the inputs, the last segment gives its output alone. Dimension 0 of each
        tensor is the batch. Parameters and buffers are the network's own: copy the segments to
        keep them from training.

        Raises:
            RuntimeError: the body cannot be exported.
        """
        program = self._latest_program()
        if isinstance(program, str):
            raise RuntimeError(
                f"segments need a body that torch.export takes, found: {program}; use stages()"
            )
        return program.segments

    def accepts(self, *inputs: Tensor) -> bool:
        """Whether the segments stand for inputs of these sizes, whatever the batch."""
        program = self._program
        if not isinstance(program, Program):
            program = self._latest_program()
        return isinstance(program, Program) and program.accepts(inputs)

    def _current_program(self) -> Program | None:
        """The program, if it stands for the modules in their current modes."""
        program = self._program
        if isinstance(program, Program) and program.is_current():
            return program
        if any(module.training for module in self.modules()) or self.body.training:
            return None
        program = self._latest_program()
        return None if isinstance(program, str) else program

    def _latest_program(self) -> Program | str:
        """The program of the current parameters; why there is none."""
        with self._lock:
            program = self._program
            if program is None or (isinstance(program, Program) and not program.is_same()):
                with evaluating(self, self.body):
                    program = build_program(self.body, self._taps, self._inputs, self._run_all)
                if isinstance(program, str):
                    _log.warning("stages run a paused forward pass, without export: %s", program)
                self._program = program
            return program

    def _run_all(self, *tensors: Tensor) -> list[Tensor]:
        return self._run(tensors, None)

    # -- cost -------------------------------------------------------------------------------------
    def cost(self, *example: Tensor) -> tuple[StageCost, ...]:
        """Parameters, and multiply-adds per row of the batch, of each stage.

        Args:
            example: inputs; without them, those given to ``add_exits``. They are moved and cast as
                these are with the body.
        """
        own = self._inputs.example_like(self.body)
        inputs = own
        if example:
            inputs = tuple(t.to(like) for t, like in zip(example, own, strict=True))
        self._current_program()  # built here: what builds it must not be counted
        with evaluating(self, self.body):
            return count_costs(self, len(inputs[0]), lambda reached: self._visit(inputs, reached))

    def _visit(self, inputs: Sequence[Tensor], reached: Callable[[], None]) -> None:
        """Evaluate all stages in this thread; call ``reached`` at the end of each."""
        program = self._current_program()
        if program is None or not program.accepts(inputs):
            self._run(inputs, lambda stage, output: reached())
            reached()
            return
        state = tuple(inputs)
        for segment in program.segments:
            _, *rest = segment(*state)
            state = tuple(rest)
            reached()
