"""The neural game: play it from Python, in a window or without one, and measure its speed.

Importing this package is light; ``engine.window`` needs pygame-ce and ``engine.game`` torch.
"""
