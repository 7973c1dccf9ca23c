"""How samplers ask a network: for the prediction alone, in a given precision, by compiled blocks or a recorded graph where asked.

None of it is identity: execution changes how long an answer takes and its last digits. The precision does change numbers, and an
evaluation states it (protocols.sampled_in).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ltbench.compiled import compile_blocks, compiler_failed, set_layout, uncompile
from ltbench.execution import PLAIN, Executed, Execution, executed
from ltbench.graphs import Recorder, cuda_graph
from ltbench.networks import Network
from ltbench.sampling.graphs import Graphs

Ask = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (B, C, H, W), t (B,), y (B,)) -> the prediction (B, C, H, W) in the dtype of x."""
Notice = Callable[[str], None]

# What two runs of one computation may differ by, as a share of the largest number: other kernels add up in another order.
ROUNDING = {None: 1e-2, "fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}


def _silent(message: str) -> None: ...


class Forward:
    """A network as samplers ask it. `rows`: how many it has been given.

    precision: with bf16 the network, and nothing around it, runs under autocast; otherwise it runs as it is, and `multiplying`
    says how its matrices are multiplied. compiled: its blocks were compiled in place; where that fails at the first call, they
    are put back, and `notice` hears why.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: str | None = None,
        *,
        compiled: bool = False,
        recorder: Recorder | None = None,
        notice: Notice = _silent,
    ) -> None:
        self.network, self.precision, self.rows = network, precision, 0
        self._compiled, self._notice = compiled, notice
        self._not_compiled = ""  # why, where it was meant to be
        self._ask: Ask = self._run
        if recorder is not None:
            self._ask = Graphs(self._run, recorder, rounding=ROUNDING[precision], notice=notice)

    @property
    def executed(self) -> Executed:
        """How the network is really called, which is less than was meant where something was not to be had."""
        graphs = self._ask if isinstance(self._ask, Graphs) else None
        ended = None if graphs is None else graphs.ended
        return executed(self._compiled, graphs is not None and not ended, self._not_compiled, ended)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.rows += len(x)
        return self._ask(x, t, y)

    def _run(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        try:
            return self._forward(x, t, y)
        except Exception as error:
            reason = compiler_failed(error) if self._compiled else None
            if reason is None:
                raise
            self._not_compiled = f"sampling without compiled blocks: {reason}"
            self._notice(self._not_compiled)
        assert isinstance(self.network, Network), "others are not compiled"
        self._compiled = False
        uncompile(self.network)
        return self._forward(x, t, y)

    def _forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if self.precision != "bf16":
            return self.network(x, t, y)[0]
        # A cast weight is used once per call: a cache of them would only take memory.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            found = self.network(x, t, y)[0]
        return found.to(x.dtype)


def prepared(
    network: Network,
    device: torch.device,
    precision: str | None = None,
    execution: Execution = PLAIN,
    notice: Notice = _silent,
    *,
    backend: str = "inductor",
) -> Forward:
    """A network, which is changed in place, as `execution` has it called. backend: what blocks are compiled by."""
    if not execution.compiled:
        return Forward(network, precision, notice=notice)
    set_layout(network, device)
    compile_blocks(network, backend=backend)
    recorder = cuda_graph(device) if execution.graphs else None
    return Forward(network, precision, compiled=True, recorder=recorder, notice=notice)


@contextmanager
def multiplying(precision: str | None) -> Iterator[None]:
    """Matrix products and convolutions of float32 by TF32 or not, for a while. None: as they are.

    bf16 allows TF32 for what autocast leaves in float32, and for the decoder, which is not under autocast.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if precision is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
