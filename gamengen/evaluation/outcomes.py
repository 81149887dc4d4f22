"""How truly the outcome head tells reward, the game's end and the score bar, on held-out real episodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gamengen.devices import place
from gamengen.evaluation.subject import Subject
from gamengen.latents import LatentEpisodes
from gamengen.outcome import OutcomeHead
from gamengen.train_outcome import read_all_results, score_outcomes
from recorder.episodes import EpisodeInfo, read_episode
from recorder.progress import progress

MOST_FRAMES = 6000  # whole episodes are read, as long as there are no more


def measure_outcomes(head: OutcomeHead, subject: Subject, episodes: Sequence[EpisodeInfo]) -> dict[str, float | int]:
    """The figures of :func:`gamengen.train_outcome.score_outcomes`, and ``frames`` and ``ends`` they come from."""
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
    truth = read_all_results(list(ended), ended, chosen[0].variable_names, head.config)
    figures = score_outcomes(place(head, subject.device), footage, truth, subject.device)
    return {"frames": len(truth.usable), "ends": int(truth.ends.sum()), **figures}
