"""Flows measured between recorded frames, which a flow network learns from, and frames moved by what it has learned.

Measured by dense inverse search (Kroeger et al., arXiv 1603.03590) of OpenCV. It loses what moves far, as a turn does,
so it begins where the camera is: the camera is learned from what was measured, whatever the pictures, by the actions
alone, and then it is measured again from there.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from gamengen.compensation import FLOW_PIXELS, Camera
from gamengen.flow import CAMERA_WIDTH, Mover
from gamengen.latents import LatentEpisodes, fill_cache, load_cache, weights_hash
from gamengen.training import autocast
from recorder.episodes import read_episode
from recorder.progress import progress
from recorder.recording import Recording, is_held_out

ROUNDS = 3  # of measuring and learning the camera
CAMERA_FRAMES = 10_000  # which it is learned from
CAMERA_STEPS, CAMERA_BATCH, CAMERA_RATE = 1500, 256, 1e-2
MOVES, MOVES_WEIGHT = 1.0, 4.0  # pixels; what stands still on the screen, like a score bar, says little of the camera
MOST_THREADS = 8
BATCH = 16


def measure_flow(frames: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Where each pixel of the next frame was.

    Args:
        frames: (N, H, W, 3) uint8 of one episode.
        start: flow in pixels (N, 2, H/8, W/8) that the search begins with; None begins with none.

    Returns:
        Flow in pixels (N, 2, H/8, W/8) float16 from each frame to the one after it; 0 from the last.
    """
    import cv2

    height, width = frames.shape[1] // FLOW_PIXELS, frames.shape[2] // FLOW_PIXELS
    flows = np.zeros((len(frames), 2, height, width), np.float16)

    def measure(numbers: range) -> None:
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        for number in numbers:
            last, following = (cv2.cvtColor(frames[at], cv2.COLOR_RGB2GRAY) for at in (number, number + 1))
            begin = None
            if start is not None:
                begin = cv2.resize(start[number].transpose(1, 2, 0).astype(np.float32), last.shape[::-1])
            found = search.calc(following, last, begin)
            flows[number] = cv2.resize(found, (width, height), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)

    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(measure, [range(first, len(frames) - 1, threads) for first in range(threads)]))
    return flows


def held_actions(actions: torch.Tensor, context: int) -> torch.Tensor:
    """Actions (N, A) of an episode -> those of the K past frames at each (N, K, A); the first held before the start."""
    padded = torch.cat([actions[:1].expand(context - 1, -1), actions])
    return padded.unfold(0, context, 1).transpose(1, 2)


def learn_camera(camera: Camera, actions: torch.Tensor, flows: torch.Tensor, seed: int) -> None:
    """Teach ``camera`` flows (N, 2, h, w) from actions (N, K, A), by absolute error: it goes with the majority."""
    flows = flows.to(actions.device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(camera.parameters(), CAMERA_RATE, weight_decay=0.01)
    for step in range(CAMERA_STEPS):
        optimizer.param_groups[0]["lr"] = CAMERA_RATE * (1 - step / CAMERA_STEPS)
        picks = torch.randint(len(flows), (CAMERA_BATCH,), generator=generator).to(flows.device)
        flow = flows[picks].float()
        weight = torch.where(flow.abs().amax(dim=1, keepdim=True) > MOVES, MOVES_WEIGHT, 1.0)
        loss = ((camera(actions[picks], *flow.shape[2:]) - flow).abs() * weight).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def find_camera(recording: Recording, context: int, seed: int) -> Camera:
    """The camera of a recorded game, learned in rounds from flows that are measured from where it is by then."""
    torch.manual_seed(seed)
    camera = Camera(context * recording.header.action_set.size, CAMERA_WIDTH)
    infos = [info for info in recording.episodes() if not is_held_out(info.path)]
    total = np.cumsum([info.frames for info in infos])
    paths = [info.path for info in infos[: 1 + int(np.searchsorted(total, CAMERA_FRAMES))]]
    with progress("learning how actions move the camera", ROUNDS * len(paths), "episodes") as show:
        for turn in range(ROUNDS):
            held, flows = [], []
            for number, path in enumerate(paths):
                episode = read_episode(path)
                held.append(held_actions(torch.from_numpy(episode.actions), context)[:-1])
                start = _camera_flows(camera, held[-1], episode.frames) if turn else None
                flows.append(torch.from_numpy(measure_flow(episode.frames, start))[:-1])
                show(turn * len(paths) + number + 1, "")
            learn_camera(camera, torch.cat(held), torch.cat(flows), seed)
    return camera


def measure_recording(recording: Recording, camera: Camera, context: int, folder: Path) -> None:
    """Measure the flows of every episode that is not in the cache yet, from where ``camera`` is.

    Raises:
        DataError: the cache is of another camera, or cannot be written.
    """

    def measure(path: Path) -> dict[str, torch.Tensor]:
        episode = read_episode(path)
        start = _camera_flows(camera, held_actions(torch.from_numpy(episode.actions), context), episode.frames)
        return {"flows": torch.from_numpy(measure_flow(episode.frames, start))}

    fill_cache(recording, folder, {"camera": weights_hash(camera)}, "measuring how pictures move", measure)


def load_flows(
    folder: Path, camera: Camera, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> tuple[LatentEpisodes, LatentEpisodes]:
    """``latents`` (train, held out) with the measured flows.

    Raises:
        DataError: the cache is missing, damaged, or of another camera.
    """
    train, held_out = _cached(folder, {"camera": weights_hash(camera)}, "flows")
    return replace(latents[0], flows=train), replace(latents[1], flows=held_out)


def move_recording(recording: Recording, mover: Mover, caches: Path, folder: Path) -> None:
    """Move every frame to the next by what the flow network tells, and encode it, where that is not done yet.

    Args:
        recording: whose frames.
        mover: the flow network and the encoder.
        caches: the folder with the caches of latents and flows.
        folder: of the cache to fill.

    Raises:
        DataError: the cache is of other networks, or cannot be written.
    """
    config = mover.network.config

    @torch.inference_mode()
    def move(path: Path) -> dict[str, torch.Tensor]:
        episode = read_episode(path)
        latents = load_file(caches / "latents" / f"{path.stem}.safetensors")["latents"]
        flows = load_file(caches / "flows" / f"{path.stem}.safetensors")["flows"]
        held = held_actions(torch.from_numpy(episode.actions), config.context)
        device = next(mover.network.parameters()).device
        before = torch.cat([torch.zeros_like(flows[:1]), flows[:-1]])
        moved = []
        with autocast(device):
            for part in torch.arange(len(latents)).split(BATCH):
                past = latents[(part[:, None] - torch.arange(config.seen - 1, -1, -1)).clamp(min=0)]
                given = (past.float(), held[part], torch.from_numpy(episode.frames)[part], before[part].float())
                seen, _ = mover(*(tensor.to(device) for tensor in given))
                moved.append(seen[:, -1].half().cpu())
        return {"moved": torch.cat(moved)}

    fill_cache(recording, folder, _mover_hashes(mover), "moving frames", move)


def load_moved(
    folder: Path, mover: Mover, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> tuple[LatentEpisodes, LatentEpisodes]:
    """``latents`` (train, held out) with those of the frames moved.

    Raises:
        DataError: the cache is missing, damaged, or of other networks.
    """
    train, held_out = _cached(folder, _mover_hashes(mover), "moved")
    return replace(latents[0], moved=train), replace(latents[1], moved=held_out)


def _cached(folder: Path, maker: dict[str, str], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    train, held_out = (torch.cat(found[name]) for found in load_cache(folder, maker, (name,)))
    return train, held_out


def _mover_hashes(mover: Mover) -> dict[str, str]:
    return {"flow": weights_hash(mover.network), "encoder": weights_hash(mover.autoencoder.encoder)}


@torch.no_grad()
def _camera_flows(camera: Camera, held: torch.Tensor, frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1] // FLOW_PIXELS, frames.shape[2] // FLOW_PIXELS
    parts = [camera(part, height, width).half() for part in held.split(256)]
    return torch.cat(parts).numpy()
