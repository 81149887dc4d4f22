"""How a frame is computed: step by step, compiled, or as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from agents.errors import OptionError
from gamengen.autoencoder import Autoencoder, Before
from gamengen.denoiser import Denoiser
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.geometry import Mover
from gamengen.outcome import OutcomeHead
from gamengen.tally import Tally

MODES = ("auto", "eager", "compiled", "graph")
GRAPH_WARMUPS = 3  # before a capture, as PyTorch asks for

# Latents (B, K, C, h, w), actions (B, K, A), screen (B, H, W, 3) uint8, motions by which it came (B, HISTORY, 4),
# counts of the frame to come (B, frames, L), noise -> latent, frames, logits of the outcome, motions.
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]


class FrameMaker:
    """Samples the next latent, decodes it and tells the outcome's logits: all that a frame takes on the device.

    Args:
        autoencoder: of the game, on its device.
        denoiser: likewise.
        head: likewise; None tells nothing.
        mode: ``eager``, ``graph`` (on CUDA the whole frame is captured once and then launched as one), ``compiled``
            (torch.compile, which takes a minute at the first frame of each number of steps; on CUDA captured as a
            graph too), or ``auto``: graph on CUDA where the capture succeeds, else eager.
        mover: moves the last frame; None where the model does not see that.
        tally: tells what the score bar shows; None where the model is not told.

    Raises:
        OptionError: the mode is unknown or not possible on this device.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        head: OutcomeHead | None,
        mode: str,
        mover: Mover | None = None,
        tally: Tally | None = None,
    ) -> None:
        if mode not in MODES:
            raise OptionError("unknown mode", mode, f"use one of {', '.join(MODES)}")
        self._device = next(denoiser.parameters()).device
        if mode == "graph" and self._device.type != "cuda":
            what = f"a CUDA graph needs a CUDA device, and this is {self._device}"
            raise OptionError(what, "--mode graph", "use --mode eager or --mode compiled")
        self._autoencoder, self._denoiser, self._head, self._mover = autoencoder, denoiser, head, mover
        self._tally = tally
        self._may_fall_back = mode == "auto"
        self.mode = ("graph" if self._device.type == "cuda" else "eager") if mode == "auto" else mode
        self._ready: dict[tuple[SamplerConfig, torch.Size], Callable[..., Outputs]] = {}

    def __call__(self, inputs: Inputs, sampler: SamplerConfig, each: tuple[int, ...] | None = None) -> Outputs:
        """The next latent (B, C, h, w), frames (B, H, W, 3) uint8, logits (B, outputs) where there is a head, and the
        motions by which the frames came (those of the inputs where there is no mover).

        Where the games differ in their steps, ``each`` (B,) says them, and the frame is computed step by step.
        """
        if each is not None:
            return self._make(*inputs, sampler, each)
        key = (sampler, inputs[0].shape)
        if key not in self._ready:
            self._ready[key] = self._prepare(inputs, sampler)
        return self._ready[key](*inputs)

    def _prepare(self, inputs: Inputs, sampler: SamplerConfig) -> Callable[..., Outputs]:
        def make(*given: torch.Tensor) -> Outputs:
            return self._make(given[0], given[1], given[2], given[3], given[4], given[5], sampler)

        if self.mode == "compiled":
            compiled = _compile(make, inputs)
            return _Graph(compiled, inputs) if self._device.type == "cuda" else compiled
        if self.mode == "graph":
            try:
                return _Graph(make, inputs)
            except RuntimeError:
                if not self._may_fall_back:
                    raise
                self.mode = "eager"  # which the figures then say
        return make

    def make(self, inputs: Inputs, sampler: SamplerConfig) -> Outputs:
        """The same, step by step, whatever the mode: of compiled code or a graph nothing can be counted."""
        return self._make(*inputs, sampler)

    def look(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        screen: torch.Tensor,
        motions: torch.Tensor,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """What the denoiser is given: past latents, that of the screen moved, the score.

        Also the flow by which that is moved, where it is, and the motions by which the next frame comes.
        """
        flow = None
        if self._mover is not None:
            latents, flow, motions = self._mover(latents, actions, screen, motions)
        return latents if self._tally is None else self._tally.tell(latents, counts), flow, motions

    def _make(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        screen: torch.Tensor,
        motions: torch.Tensor,
        counts: torch.Tensor,
        noise: torch.Tensor,
        sampler: SamplerConfig,
        each: tuple[int, ...] | None = None,
    ) -> Outputs:
        context, flow, motions = self.look(latents, actions, screen, motions, counts)
        latent = sample_next(self._denoiser, context, actions, noise, sampler, each)
        frames = self._autoencoder.decode_frames(latent, Before(latents[:, -1], screen, actions, flow))
        logits = self._head(latents[:, -1], latent, actions[:, -1]) if self._head is not None else None
        return latent, frames, logits, motions


def _compile(make: Callable[..., Outputs], inputs: Inputs) -> Callable[..., Outputs]:
    """``make`` compiled for such inputs.

    Raises:
        OptionError: this machine cannot, as without a C++ compiler.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    compiled = torch.compile(make, dynamic=False)
    try:
        compiled(*inputs)
    except TorchDynamoException as error:
        what = f"torch.compile does not work here ({str(error).strip().splitlines()[0][:120]})"
        raise OptionError(what, "--mode compiled", "use --mode eager, or see what torch.compile needs") from error
    return compiled


class _Graph:
    """A frame captured as one CUDA graph: its inputs are copied to where the graph reads them."""

    def __init__(self, make: Callable[..., Outputs], inputs: Inputs) -> None:
        self._inputs = tuple(part.clone() for part in inputs)
        self._device = self._inputs[0].device
        with torch.cuda.device(self._device):  # of several cards, work goes to the current one's streams
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(GRAPH_WARMUPS):
                    make(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=side):
                self._outputs = make(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> Outputs:
        with torch.cuda.device(self._device):
            for mine, given in zip(self._inputs, inputs, strict=True):
                mine.copy_(given)
            self._graph.replay()
        latent, frames, logits, motions = self._outputs
        return latent.clone(), frames.clone(), logits.clone() if logits is not None else None, motions.clone()
