"""Who plays: environments, action sets, rewards, and random, scripted and PPO agents.

Importing this package is light; ``agents.doom`` needs vizdoom and ``agents.ppo`` stable-baselines3.
"""
