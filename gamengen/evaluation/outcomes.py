"""How truly a model tells reward, the game's end and the score bar, on held-out real episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gamengen.devices import place
from gamengen.evaluation.subject import Subject
from gamengen.latents import LatentEpisodes
from gamengen.outcome import OutcomeHead
from gamengen.tally import Tally
from gamengen.train_outcome import read_all_results, score_outcomes
from gamengen.train_tally import read_counts
from recorder.episodes import EpisodeInfo, read_episode
from recorder.progress import progress

MOST_FRAMES = 6000  # whole episodes are read, as long as there are no more
CHUNK = 512


def measure_outcomes(
    head: OutcomeHead, tally: Tally | None, subject: Subject, episodes: Sequence[EpisodeInfo]
) -> dict[str, float | int]:
    """The figures of :func:`gamengen.train_outcome.score_outcomes`, and ``frames`` and ``ends`` they come from.

    Where the ``tally`` draws how games are lost, an end is what either of the two tells.
    """
    chosen: list[EpisodeInfo] = []
    for info in episodes:
        if not chosen or sum(other.frames for other in chosen) + info.frames <= MOST_FRAMES:
            chosen.append(info)
    latents, actions = [], []
    with progress("outcomes", len(chosen), "episodes") as show:
        for done, info in enumerate(chosen, 1):
            episode = read_episode(info.path)
            latents.append(subject.encode(episode.frames).half().cpu())
            actions.append(torch.from_numpy(episode.actions))
            show(done, "")
    footage = LatentEpisodes(torch.cat(latents), torch.cat(actions), tuple(info.frames for info in chosen))
    ended = {info.path: info.terminated for info in chosen}
    names = chosen[0].variable_names
    truth = read_all_results(list(ended), ended, names, head.config)
    lost, lost_reward = None, 0.0
    if tally is not None and tally.config.vital in names:
        counts = torch.cat([torch.from_numpy(read_counts(path, names, tally.config)) for path in ended])
        lost = chances_to_lose(place(tally, subject.device), replace(footage, counts=counts))
        lost_reward = tally.config.lost_reward
    figures = score_outcomes(place(head, subject.device), footage, truth, subject.device, lost, lost_reward)
    return {"frames": len(truth.usable), "ends": int(truth.ends.sum()), **figures}


@torch.inference_mode()
def chances_to_lose(tally: Tally, episodes: LatentEpisodes) -> torch.Tensor:
    """How likely the game is lost in the step after each frame of ``episodes``, which have counts: (N,) float32."""
    device, found = tally.pictures.device, []
    for frames in torch.arange(len(episodes.latents)).split(CHUNK):
        past = torch.maximum(frames[:, None] + torch.arange(1 - tally.config.context, 1), episodes.begins(frames))
        counts = episodes.history(frames).to(device)
        logits = tally(episodes.latents[past].float().to(device), episodes.actions[past].to(device), counts)
        found.append(tally.chance_to_lose(logits, counts).cpu())
    return torch.cat(found)
